"""The one reader of JSON: bounded in size, depth and digits, without NaN, so that no file can cost more than a sentence.

Python's own reader takes all of that, and what it makes of a hostile file fails later, or fills the memory.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, MoshiError, clean, quoted
from .input_files import read_bytes

# Configurations and indices of shards are smaller by far; tokenizers come close.
LARGEST, LARGEST_TOKENIZER = 16 << 20, 40 << 20
DEEPEST = 64
# Lists, objects, entries and escaped characters of one file: more would take seconds and gigabytes, and no model needs them.
MOST_PARTS = 2_500_000
MOST_DIGITS = 30

_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def parse_json(content: bytes) -> Any:
    """The value of a JSON text in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises `ValueError` with a few words: what is wrong, or which bound it breaks.
    """
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None
    _check_shape(text.encode("utf-8", "surrogatepass"))
    try:
        return json.loads(
            text, parse_int=_integer, parse_float=_number, parse_constant=_constant, object_pairs_hook=_object
        )
    except json.JSONDecodeError as e:
        raise ValueError(str(e)) from None


def read_json(path: str | Path, largest: int = LARGEST, error: type[MoshiError] = ConfigError) -> dict[str, Any]:
    """The JSON object in a file of at most `largest` bytes. Raises `error` with one sentence."""
    try:
        data = parse_json(read_bytes(path, largest, error))
    except ValueError as e:
        if isinstance(e, MoshiError):
            raise
        raise error(f"{path} is not valid JSON: {e}.") from None
    if not isinstance(data, dict):
        raise error(f"{path} should hold a JSON object, found {type(data).__name__}.")
    return data


def _check_shape(content: bytes) -> None:
    """Refuse what is nested too deep or has too many parts, before anything is made of it."""
    escaped = content.count(b"\\")
    if escaped + content.count(b'"') > 4 * MOST_PARTS:
        raise ValueError(f"it has more than {MOST_PARTS} parts")
    marks = np.frombuffer(_STRINGS.sub(b"", content), np.uint8)
    opened = (marks == ord("[")) | (marks == ord("{"))
    closed = (marks == ord("]")) | (marks == ord("}"))
    if escaped + int(opened.sum()) + int((marks == ord(",")).sum()) > MOST_PARTS:
        raise ValueError(f"it has more than {MOST_PARTS} parts")
    depth = np.cumsum(opened.astype(np.int8) - closed.astype(np.int8), dtype=np.int32)
    if depth.size and int(depth.max()) > DEEPEST:
        raise ValueError(f"it is nested more than {DEEPEST} deep")


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {clean(digits, 40)} is too large")
    return value


def _constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that is there twice nobody could say which is meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{quoted(name)} is there twice")
            seen.add(name)
    return found
