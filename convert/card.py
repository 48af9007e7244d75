"""The model card: what a folder holds, where it comes from, under which licence, and how it was made."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from moshi_mlx.checkpoint import hub, registry
from moshi_mlx.version import __version__

from .source import Source

_LIBRARIES = {"mlx": "mlx", "pytorch": "moshi", "transformers": "transformers"}
_USE = {
    "mlx": "With moshi_mlx 1.0 or newer (installed from a clone of its repository by `pip install .`; the moshi_mlx 0.3 of PyPI is another "
    "program):\n\n```shell\n{}\n```",
    "pytorch": "The original PyTorch program reads this folder (`--moshi-weight`, `--mimi-weight`, `--tokenizer`, `--config`).",
    "transformers": "`from_pretrained` of transformers reads this folder.",
}


def licence_id(licence: str | None) -> str:
    """A licence in the words of the Hub's card headers."""
    if licence is None:
        return "unknown"
    known = {
        "cc-by 4.0": "cc-by-4.0",
        "cc-by-nc 4.0": "cc-by-nc-4.0",
        "cc-by-sa 4.0": "cc-by-sa-4.0",
        "cc-by-nc-sa 4.0": "cc-by-nc-sa-4.0",
    }
    word = licence.strip().lower()
    return known.get(word, word if " " not in word else "other")


# Kind of a model -> what the Hub calls its task, and tags people look for.
_TASKS = {
    "moshi": ("audio-to-audio", ("moshi", "speech-to-speech", "full-duplex")),
    "personaplex": ("audio-to-audio", ("moshi", "personaplex", "speech-to-speech", "full-duplex")),
    "hibiki": ("audio-to-audio", ("hibiki", "speech-translation")),
    "stt": ("automatic-speech-recognition", ("moshi", "speech-to-text")),
    "tts": ("text-to-speech", ("moshi", "tts")),
    "helium": ("text-generation", ("helium",)),
}


def _header(source: Source, layout: str, quantized: bool) -> list[str]:
    """Lines between the dashes, which the Hub reads."""
    licence = licence_id(source.licence)
    lines = [f"license: {licence}"]
    if licence == "other":
        lines.append(f"license_name: {re.sub(r'[^a-z0-9.]+', '-', str(source.licence).lower()).strip('-')}")
    if source.is_repository:
        lines.append(f"base_model: {source.name}")
        if quantized:
            lines.append("base_model_relation: quantized")
    tags: tuple[str, ...] = ("voices",) if source.codec is None else ("mimi", "audio-codec")
    if source.model is not None:
        task, tags = _TASKS[source.model.config.kind]
        lines += [f"library_name: {_LIBRARIES[layout]}", f"pipeline_tag: {task}"]
    return [*lines, "tags:", *(f"- {tag}" for tag in dict.fromkeys((_LIBRARIES[layout], *tags)))]


def public_command(command: Sequence[str], source: Source) -> str:
    """A command line without the folders of whoever typed it."""
    return shlex.join(_public_word(word, source) for word in command)


def _public_word(word: str, source: Source) -> str:
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    is_path = "/" in value or value.startswith("~")
    if is_path and not hub.is_hub_name(value) and not (source.is_repository and value == source.name):
        value = PurePath(value).name
    return flag + equals + value


def write(
    source: Source, layout: str, command: Sequence[str], facts: dict[str, Any], title: str, quantized: bool = False
) -> str:
    """README.md: a header for the Hub and a few lines for people. `facts` are rows of a table."""
    rows = {
        "source": source.public_name,
        "revision": source.revision or "a local file",
        "source format": source.kind,
        "licence": source.licence or "not stated by the source: ask whoever published it",
        "layout": layout,
        **facts,
        "made by": f"moshi_mlx {__version__}",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    notes = "".join(f"\n- {note}" for note in source.notes)
    use = ""
    if source.model is not None:
        use = f"\n{_USE[layout].format(registry.usage(source.model.config.kind, 'PATH'))}\n"
    said = public_command(command, source)
    header = _header(source, layout, quantized)
    return "\n".join(["---", *header, "---", f"# {title}", "", table, "", "Command:", "", f"    {said}", use]) + (
        f"\nNotes:\n{notes}\n" if notes else ""
    )
