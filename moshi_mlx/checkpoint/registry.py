"""Short names of published checkpoints, and what is known of each before anything is fetched."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..machine.memory import gigabytes
from .published import MIMI_BYTES, PUBLISHED

DEFAULT_NAME = "moshiko"
# The small model inside the package, wherever a checkpoint is named.
DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).parent.parent / "demo"
# Slack for activations, kernels and Python itself; `checkpoint` adds the same to its estimate.
OVERHEAD_BYTES = 250_000_000
# The command for each kind of model, and what it is given first.
_COMMANDS = {
    "moshi": ("local", ""),
    "personaplex": ("local", " --voice NATF2"),
    "hibiki": ("local", ""),
    "stt": ("stt", " talk.wav"),
    "tts": ("run_tts", ' --text "Hello there." hello.wav'),
    "helium": ("run_helium", ' "The river"'),
}


@dataclass(frozen=True)
class Published:
    """One published checkpoint at one precision.

    `bits` None means bfloat16. `weight_bytes` is the language model's file, `loaded_bytes` what of it is kept in memory,
    `sampling` the defaults it ships with, `page` its file under docs/models. `about`: the size was computed, not read.
    """

    name: str
    kind: str
    what: str
    repo: str
    bits: int | None
    weights: str
    codec: str | None
    tokenizer: str
    weight_bytes: int
    loaded_bytes: int
    ring_bytes: int
    parameters: float
    licence: str
    gated: bool
    about: bool
    sampling: dict[str, float]
    page: str

    @property
    def download_bytes(self) -> int:
        """Weights and codec; the tokenizer is less than a megabyte."""
        return self.weight_bytes + (MIMI_BYTES if self.codec else 0)

    def memory_bytes(self, wide: bool = False) -> int:
        """What a conversation that fills the window needs, in bfloat16; in float32 if `wide`, where packed weights stay packed."""
        weights = self.loaded_bytes * (2 if wide and self.bits is None else 1)
        codec = MIMI_BYTES if self.codec else 0
        return weights + codec + self.ring_bytes * (2 if wide else 1) + OVERHEAD_BYTES

    @property
    def command(self) -> str:
        """How it is used."""
        module, arguments = _COMMANDS[self.kind]
        precision = "" if self.bits is None else f" -q {self.bits}"
        return f"python -m moshi_mlx.{module}{arguments} --model {self.name}{precision}"

    @property
    def precision(self) -> str:
        return "bf16" if self.bits is None else f"{self.bits} bit"

    @property
    def url(self) -> str:
        return f"https://huggingface.co/{self.repo}"


def _variants(entry: dict[str, Any]) -> list[Published]:
    layers, width, positions = entry["window"]
    common = {
        k: entry[k] for k in ("name", "kind", "what", "codec", "tokenizer", "parameters", "licence", "sampling", "page")
    }
    return [
        Published(
            repo=repo,
            bits=bits,
            weights=weights,
            weight_bytes=size,
            loaded_bytes=entry.get("loaded_bytes", size),
            ring_bytes=2 * 2 * layers * width * positions,
            gated=entry.get("gated", False),
            about=entry.get("about", False),
            **common,
        )
        for bits, (repo, weights, size) in entry["repositories"].items()
    ]


ALL: tuple[Published, ...] = tuple(v for entry in PUBLISHED for v in _variants(entry))
_NAMES: dict[str, str] = {alias: e["name"] for e in PUBLISHED for alias in (e["name"], *e.get("aliases", ()))}
_FORMS: dict[str, str] = {repo: e["name"] for e in PUBLISHED for repo in e.get("forms", ())}


def by_repo(repo: str) -> Published | None:
    """What is known of a repository, None when it is not one of the published ones. Other forms of one have about its size."""
    if repo in _FORMS:
        return replace(by_name(_FORMS[repo]), repo=repo, about=True)
    return next((p for p in ALL if p.repo == repo), None)


def is_name(name: str) -> bool:
    return name in _NAMES


def variants(name: str) -> tuple[Published, ...]:
    """The checkpoint of a short name at every precision published. Raises `InputError`."""
    if name not in _NAMES:
        raise InputError(unknown_name(name))
    return tuple(p for p in ALL if p.name == _NAMES[name])


def by_name(name: str, bits: int | None = None) -> Published:
    """The checkpoint of a short name at a precision (None: bfloat16). Raises `InputError`."""
    known = variants(name)
    found = next((p for p in known if p.bits == bits), None)
    if found is None:
        raise InputError(
            f"{name} is published as {' and '.join(p.precision for p in known)}, not as {bits} bit. "
            f"Make one: python -m moshi_mlx.quantize {name} FOLDER -q {bits}"
        )
    return found


def unknown_name(name: str) -> str:
    """What to say of a name that is neither a folder nor a checkpoint."""
    close = difflib.get_close_matches(name, [*_NAMES, DEMO_NAME], n=1)
    hint = f" Did you mean {close[0]}?" if close else " `python -m moshi_mlx.models` lists them."
    return f"{name} is neither a folder nor the name of a published checkpoint.{hint}"


def before_download(model: object, hf_repo: str | None, bits: int | None) -> list[str]:
    """What to say before a checkpoint is fetched: size, licence, gating. Nothing where that is unknown or its weights are there."""
    if hf_repo is not None:
        known = by_repo(hf_repo)
    else:
        name = DEFAULT_NAME if model is None else str(model)
        known = by_name(name, bits) if is_name(name) and not Path(name).exists() else None
    # Other forms name their weights otherwise.
    if known is None or is_cached(known.repo, "config.json" if known.repo in _FORMS else known.weights):
        return []
    size = f"{'about ' if known.about else ''}{gigabytes(known.download_bytes)}"
    return [f"{known.repo}: {size} to download, licence: {known.licence}", *gating(known)]


def gating(known: Published) -> list[str]:
    """What to do first where a licence has to be accepted."""
    if not known.gated:
        return []
    return [f"it is gated: accept its licence at {known.url}, then run `hf auth login` once"]


def is_cached(repo: str, filename: str) -> bool:
    """Whether a file of the Hub is on this machine already."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, filename), str)
