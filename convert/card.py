"""The model card: what a folder holds, where it comes from, under which licence, and how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from moshi_mlx.version import __version__

from .source import Source

_LIBRARIES = {"mlx": "mlx", "pytorch": "moshi", "transformers": "transformers"}
_USE = {
    "mlx": "```shell\npip install moshi_mlx\npython -m moshi_mlx.run_inference question.wav reply.wav --model PATH\n```",
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


def write(source: Source, layout: str, command: Sequence[str], facts: dict[str, Any], title: str) -> str:
    """README.md: a header for the Hub and a few lines for people. `facts` are rows of a table."""
    repository = source.name.count("/") == 1 and source.revision is not None
    header = [f"license: {licence_id(source.licence)}"]
    if repository:
        header.append(f"base_model: {source.name}")
    if source.model is not None:
        header.append(f"library_name: {_LIBRARIES[layout]}")
    rows = {
        "source": source.name,
        "revision": source.revision or "a local file",
        "source format": source.kind,
        "licence": source.licence or "not stated by the source: ask whoever published it",
        "layout": layout,
        **facts,
        "made by": f"moshi_mlx {__version__}",
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {k} | {v} |" for k, v in rows.items())])
    notes = "".join(f"\n- {note}" for note in source.notes)
    use = f"\n{_USE[layout]}\n" if source.model is not None else ""
    return "\n".join(
        ["---", *header, "---", f"# {title}", "", table, "", "Command:", "", f"    {shlex.join(command)}", use]
    ) + (f"\nNotes:\n{notes}\n" if notes else "")
