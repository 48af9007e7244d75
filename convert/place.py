"""Where the files of a source are: a folder, a single file, or a repository of the Hub."""

from __future__ import annotations

import os
from pathlib import Path

from moshi_mlx.checkpoint import hub, registry
from moshi_mlx.checkpoint.places import Folder, Place, Repo, is_demo, open_place
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.errors import CheckpointError

# Names of weights, best first: what is smaller or rounded comes after what it was made from.
WEIGHT_NAMES = (
    "model.safetensors", "model.safetensors.index.json", "consolidated.safetensors", "checkpoint.safetensors",
    "model.q8.safetensors", "model.q8.gguf", "model.q4.safetensors", "pytorch_model.bin", "model.pt", "model.th",
)  # fmt: skip
_ENDINGS = (".safetensors", ".safetensors.index.json", ".gguf", ".pt", ".th", ".bin")


class CheckedFolder(Folder):
    """A folder none of whose files may lie elsewhere, except in the same cache of the Hub."""

    def find(self, name: str, optional: bool = False) -> Path | None:
        path = super().find(name, optional)
        return None if path is None else refuse_outside(path, self.path)

    def check(self, tensors: WeightsFile) -> None:
        """As `find`, for the files of a set of shards."""
        for file in {info.file for info in tensors.values()}:
            refuse_outside(file, self.path)

    def weights(self) -> list[Path]:
        """Files that may hold weights, in the order in which they are looked at."""
        names = [entry.name for entry in os.scandir(self.path) if entry.is_file() and entry.name.endswith(_ENDINGS)]
        known = [n for n in WEIGHT_NAMES if n in names]
        others = sorted((n for n in names if n not in known), key=lambda n: (_rank(n), n))
        return [path for n in known + others if (path := self.find(n)) is not None]


def _rank(name: str) -> int:
    return next(i for i, ending in enumerate(_ENDINGS) if name.endswith(ending))


def refuse_outside(path: Path, folder: Path) -> Path:
    """`path` itself; `CheckpointError` if a symbolic link leads out of `folder`."""
    root = folder.resolve()
    if root.parent.name == "snapshots":
        # The Hub's cache keeps the bytes beside the snapshots.
        root = root.parent.parent
    if not path.resolve().is_relative_to(root):
        raise CheckpointError(
            f"{path} is a symbolic link to {path.resolve()}, outside its folder, which is refused. Put the file itself there."
        )
    return path


def find_place(source: str) -> tuple[Place, Path | None]:
    """The place `source` names, and the one weights file in it, where it names a file."""
    if hub.is_hub_name(source):
        repo, name = hub.split_hub_name(source)
        return Repo(repo), hub.download(repo, name)
    if not source:
        raise CheckpointError("the source's name is empty. Name a file, a folder or a repository of the Hub.")
    path = Path(source).expanduser()
    if path.is_dir() and is_demo(path):
        return open_place(path), None
    if path.is_dir():
        inner = path / "consolidated"
        # moshi-finetune keeps the weights of a checkpoint one level down.
        return CheckedFolder(inner if inner.is_dir() and not (path / "config.json").exists() else path), None
    if path.exists() and is_demo(path.parent):
        return open_place(path.parent), path
    if path.exists():
        return CheckedFolder(path.parent), path
    if source.count("/") == 1 and not source.startswith((".", "~")):
        return Repo(source), None
    if len(path.parts) > 1 or path.suffix:
        raise CheckpointError(f"{source} does not exist. Name a file, a folder or a repository of the Hub.")
    return open_place(source), None


def published(place: Place) -> registry.Published | None:
    """What is known of a repository whose files have names of their own and no configuration that tells them."""
    return registry.by_repo(place.repo) if isinstance(place, Repo) else None


def revision_of(path: Path | None) -> str | None:
    """The commit of a file in the Hub's cache."""
    if path is None:
        return None
    parts = path.absolute().parts
    cached = (
        commit
        for repo, folder, commit in zip(parts, parts[1:], parts[2:-1], strict=False)
        if repo.startswith("models--") and folder == "snapshots"
    )
    return next(cached, None)
