"""Voices of PersonaPlex, saved as safetensors: from an archive, a folder or a single `.pt` file (family.md 5.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from moshi_mlx.errors import CheckpointError
from moshi_mlx.session import voices
from moshi_mlx.session.voices import ARCHIVE, Voice

__all__ = ["ARCHIVE", "Reader", "in_archive", "in_folder", "is_archive", "read"]

# Reads one voice when it is its turn.
Reader = Callable[[], Voice]


def is_archive(path: Path) -> bool:
    """Whether a file is a compressed archive, as voices are published in."""
    try:
        with path.open("rb") as f:
            return f.read(2) == b"\x1f\x8b"
    except OSError:
        return False


def in_archive(path: Path) -> list[tuple[str, Reader]]:
    """The voices of an archive by name. Its members are read in memory; nothing is extracted."""
    with voices._open_archive(path) as tar:
        names = sorted(voices._members(tar))
    if not names:
        raise CheckpointError(f"{path} holds no voices; expected files called *.pt in it.")
    return [(name, partial(voices._from_archive, path, name)) for name in names]


def in_folder(path: Path) -> list[tuple[str, Reader]]:
    found = sorted(p for p in path.iterdir() if p.suffix in (".pt", ".safetensors") and not p.name.startswith("."))
    return [(p.stem, partial(read, p)) for p in found]


def read(path: Path) -> Voice:
    return voices.load_voice(path)
