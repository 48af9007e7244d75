"""Where the files of a checkpoint are looked up: a local folder, or a repository of the Hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..config.input_files import check_name, file_size
from ..errors import CheckpointError, ConfigError, InputError, clean, quoted
from . import hub, registry
from .published import DEFAULT_NAME, DEMO_CODEC, DEMO_FOLDER, DEMOS
from .weights_file import shard_names

_HEADER_BYTES = 16_000
_REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*"


class Place:
    """Files by name."""

    def find(self, name: str, optional: bool = False) -> Path | None:
        """A file of this place; None for a missing `optional` one."""
        raise TypeError

    def licence(self) -> str | None:
        """What the model card's header says."""
        readme = self.find("README.md", optional=True)
        text = ""
        if readme is not None:
            with readme.open("rb") as file:
                text = file.read(_HEADER_BYTES).decode("utf-8", "replace")
        match = re.search(r"^license:\s*(\S+)", text, re.MULTILINE) if text.startswith("---") else None
        return clean(match[1].strip("\"'"), 80) if match else None

    def named(self, name: str, optional: bool = False) -> Path | None:
        """A file named by the configuration: beside it, or anywhere on the Hub."""
        if hub.is_hub_name(name):
            return hub.download(*hub.split_hub_name(name))
        check_name(name, "config", ConfigError)
        return self.find(name, optional)


class Folder(Place):
    def __init__(self, path: Path):
        self.path = path
        if not os.path.exists(path):
            raise CheckpointError(f"the checkpoint folder {path} does not exist.")
        if not os.path.isdir(path):
            raise CheckpointError(f"{path} is a file; expected the checkpoint's folder.")

    def find(self, name: str, optional: bool = False) -> Path | None:
        path = self.path / name
        # A link that leads nowhere is told: without it, another model would be meant.
        if os.path.lexists(path):
            file_size(path)
            return path
        if optional:
            return None
        raise CheckpointError(f"the checkpoint {self.path} lacks the file {quoted(name)}.")

    def __str__(self) -> str:
        return str(self.path)


class DemoFolder(Folder):
    """A small model inside the package. They share one codec, which is in the package once."""

    def find(self, name: str, optional: bool = False) -> Path | None:
        if name in DEMO_CODEC:
            return Folder(DEMO_FOLDER).find(name, optional)
        return super().find(name, optional)


def is_demo(path: Path) -> bool:
    """Whether a folder is one of the package's own models, whatever links lead there."""
    return os.path.exists(path) and any(os.path.samefile(path, f) for f in DEMOS.values() if os.path.exists(f))


def folder_at(path: Path) -> Folder:
    """The folder with a checkpoint's files."""
    return DemoFolder(path) if is_demo(path) else Folder(path)


class Repo(Place):
    def __init__(self, repo: str):
        self.repo = repo

    def find(self, name: str, optional: bool = False) -> Path | None:
        return hub.download(self.repo, name, optional=optional)

    def licence(self) -> str | None:
        known = registry.by_repo(self.repo)
        return known.licence if known else super().licence()

    def __str__(self) -> str:
        return self.repo


def is_repository(name: str) -> bool:
    """Whether a repository of the Hub may be called so: `owner/name`."""
    return re.fullmatch(_REPOSITORY, name) is not None


def repository_of(name: str) -> str | None:
    """The repository of the Hub that is meant where one name stands for folders too: `hf://owner/name`, or `owner/name` where there is no
    such folder.
    """
    plain = name.removeprefix("hf://")
    if is_repository(plain) and (plain != name or not Path(name).exists()):
        return plain
    return None


def fetch_shards(place: Place, name: str, index: Path) -> None:
    """Bring the files that `index`, which is called `name` at its place, speaks of beside it."""
    for shard in sorted(set(shard_names(index).values())):
        place.find(Path(name).with_name(shard).as_posix())


def open_place(model: str | Path | None = None, hf_repo: str | None = None, quantized: int | None = None) -> Place:
    """A folder or short name `model` (`demo`, `demo-stt`, `demo-tts`: those in the package), or a repository `hf_repo`; moshiko without either.

    `quantized` (4 or 8) chooses among the precisions of a short name.
    """
    if model == "" or hf_repo == "":
        raise InputError(
            "the model's name is empty; give a folder or a short name (--model), or a repository (--hf-repo)."
        )
    if model is not None and hf_repo is not None:
        raise InputError(f"give either a folder (--model {model}) or a repository (--hf-repo {hf_repo}), not both.")
    if hf_repo is not None:
        if not is_repository(hf_repo) and Path(hf_repo).expanduser().is_dir():
            raise InputError(f"{hf_repo} is a folder; give it with --model.")
        return Repo(hf_repo)
    if model is None:
        model = DEFAULT_NAME
    elif str(model) in DEMOS and not os.path.exists(model):
        return DemoFolder(DEMOS[str(model)])
    elif hub.is_hub_name(str(model)):
        raise InputError(f"{model} is a file or repository of the Hub; give a repository with --hf-repo OWNER/NAME.")
    elif os.path.exists(model) or not registry.is_name(str(model)):
        path = Path(model).expanduser()
        if not os.path.exists(path) and path.parent == Path():
            raise CheckpointError(registry.unknown_name(str(model)))
        if not os.path.exists(path) and is_repository(str(model)):
            raise CheckpointError(
                f"there is no folder {model}; if that is a repository of the Hub, give it with --hf-repo {model}."
            )
        return folder_at(path)
    return Repo(registry.by_name(str(model), quantized).repo)
