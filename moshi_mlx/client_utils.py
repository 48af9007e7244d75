"""`client_utils.make_log` of the published package."""

from __future__ import annotations

_COLOURS = {"warning": "1;31", "info": "1;34", "error": "1;31"}


def make_log(level: str, msg: str) -> str:
    """A line for a terminal, with the coloured name of `level` in front."""
    if level not in _COLOURS:
        raise ValueError(f"unknown level {level!r}; expected {', '.join(_COLOURS)}")
    return f"\033[{_COLOURS[level]}m{level.capitalize()}:\033[0m {msg}"
