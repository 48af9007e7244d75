"""Short names of published checkpoints, and what is known of each before anything is fetched."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InputError
from ..machine.capacity import Capacity
from ..machine.memory import OVERHEAD_BYTES, gigabytes
from ..machine.serving import Cost
from .published import DEFAULT_NAME, DEMO_OF, DEMOS, MIMI_BYTES, PUBLISHED
from .published import DEMO_FOLDER as DEMO_FOLDER

# With the scales of each group, in bfloat16 as all others.
BITS_PER_WEIGHT = {4: 5.0, 8: 8.5}
# The command for each kind of model, and what it is given first.
_COMMANDS = {
    "moshi": ("local", ""),
    "personaplex": ("local", " --voice NATF2"),
    "hibiki": ("local", ""),
    "stt": ("stt", " talk.wav"),
    "tts": ("run_tts", ' --text "Hello there." hello.wav'),
    "helium": ("run_helium", ' "The river"'),
}


_ARTICLES = {
    "moshi": "a dialogue model", "personaplex": "a dialogue model", "hibiki": "a translation model",
    "stt": "a speech-to-text model", "tts": "a text-to-speech model", "helium": "a text model",
}  # fmt: skip
_KINDS_IN_WORDS = {
    "moshi": "dialogue and translation models", "personaplex": "PersonaPlex models", "stt": "speech-to-text models",
    "tts": "text-to-speech models", "helium": "text models",
}  # fmt: skip


def demo_usage(demo: str) -> str:
    """The command that runs a demo."""
    module, arguments = _COMMANDS[next(kind for kind, name in DEMO_OF.items() if name == demo)]
    return f"python -m moshi_mlx.{module} --demo{arguments}"


def usage(kind: str, model: str) -> str:
    """The command that runs a model of a kind."""
    module, arguments = _COMMANDS[kind]
    return f"python -m moshi_mlx.{module}{arguments} --model {model}"


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

    def packed(self, bits: int) -> Published:
        """About what it becomes when it is packed while loading; its download stays what it is."""
        return replace(self, bits=bits, loaded_bytes=int(self.loaded_bytes * BITS_PER_WEIGHT[bits] / 16), about=True)

    def suits(self, machine: Capacity) -> bool:
        """Whether a conversation fits the memory of a machine and its frames can be read in time."""
        codec = MIMI_BYTES if self.codec else 0
        wide = 2 if machine.wide and self.bits is None else 1
        return machine.holds(self.memory_bytes(machine.wide)) and machine.keeps_up(self.loaded_bytes * wide + codec)

    def memory_bytes(self, wide: bool = False) -> int:
        """What a conversation that fills the window needs, in bfloat16; in float32 if `wide`, where packed weights stay packed."""
        weights = self.loaded_bytes * (2 if wide and self.bits is None else 1)
        codec = MIMI_BYTES if self.codec else 0
        return weights + codec + self.ring_bytes * (2 if wide else 1) + OVERHEAD_BYTES

    @property
    def cost(self) -> Cost:
        """What serving it costs, in bfloat16: of the weights all is read, but for a few rows of tables."""
        codec = MIMI_BYTES if self.codec else 0
        return Cost(self.loaded_bytes + codec, self.loaded_bytes + codec, self.ring_bytes)

    @property
    def command(self) -> str:
        """How it is used."""
        precision = "" if self.bits is None else f" -q {self.bits}"
        return usage(self.kind, self.name) + precision

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
    """The checkpoint of a short name at a precision: the one published so, else the bfloat16 one, which is packed while it loads.

    Raises `InputError`.
    """
    known = variants(name)
    return next((p for p in known if p.bits == bits), next(p for p in known if p.bits is None))


def precisions(name: str) -> list[Published]:
    """A short name at every precision it can be run in, the widest first: published, or packed while it loads."""
    dense = by_name(name)
    return [dense, *(p if (p := by_name(name, bits)).bits == bits else dense.packed(bits) for bits in (8, 4))]


def suited(name: str, machine: Capacity) -> Published:
    """A short name at the widest precision that suits a machine; at the narrowest where none does."""
    every = precisions(name)
    return next((p for p in every if p.suits(machine)), every[-1])


def short_name(model: object, hf_repo: str | None) -> str | None:
    """The short name that arguments ask for, None where they name a folder or a repository."""
    if hf_repo is not None:
        return None
    name = DEFAULT_NAME if model is None else str(model)
    return name if is_name(name) and not os.path.exists(name) else None


def refuse_kind(model: object, hf_repo: str | None, kinds: Sequence[str], command: str) -> None:
    """Raise `InputError` where what is named is known to be no model of the `kinds` that a command runs."""
    known = by_repo(hf_repo) if hf_repo is not None else by_name(str(model)) if is_name(str(model)) else None
    if known is not None and known.kind not in kinds:
        raise InputError(wrong_kind(hf_repo or str(model), known.kind, kinds, command))


def wrong_kind(name: str, kind: str, kinds: Sequence[str], command: str) -> str:
    """What to say of a model that a command cannot run: what it is, what runs it, what this command runs."""
    ours = next(p.name for p in ALL if p.kind in kinds)
    use = f"; use python -m moshi_mlx.{_COMMANDS[kind][0]}" if kind in _COMMANDS else ""
    return f"{name} is {_ARTICLES.get(kind, kind)}{use}. {command} runs {_KINDS_IN_WORDS[kinds[0]]}, such as {ours}."


def unknown_name(name: str) -> str:
    """What to say of a name that is neither a folder nor a checkpoint."""
    close = difflib.get_close_matches(name.lower(), [*_NAMES, *DEMOS], n=1)
    hint = f" Did you mean {close[0]}?" if close else " `python -m moshi_mlx.models` lists them."
    return f"{name} is neither a folder nor the name of a published checkpoint.{hint}"


def before_download(model: object, hf_repo: str | None, bits: int | None) -> list[str]:
    """What to say before a checkpoint is fetched: size, licence, gating. Nothing where that is unknown or its weights are there."""
    name = short_name(model, hf_repo)
    known = by_repo(hf_repo) if hf_repo is not None else by_name(name, bits) if name is not None else None
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
    """Whether a file of the Hub is on this machine already; nothing is, of what is no name of a repository."""
    from huggingface_hub import errors, try_to_load_from_cache

    try:
        return isinstance(try_to_load_from_cache(repo, filename), str)
    except errors.HFValidationError:
        return False
