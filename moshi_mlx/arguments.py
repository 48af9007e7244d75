"""Arguments that cannot be, told in one sentence: checks shared by all that takes numbers from a program."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from .errors import InputError


def whole(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """`value` as an int where it is a whole number (also NumPy's) from `low` to `high`; no bool, no float."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name} should be a whole number{_range(low, high)}, found {shown(value)}.") from None
    if (low is not None and number < low) or (high is not None and number > high):
        raise InputError(f"{name} should be a whole number{_range(low, high)}, found {shown(number)}.")
    return number


def number(name: str, value: Any, low: float | None = None, high: float | None = None) -> float:
    """`value` as a float where it is a finite number (also NumPy's) from `low` to `high`; no bool, no text."""
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} should be a number{_range(low, high)}, found {shown(value)}.") from None
    if not math.isfinite(found) or (low is not None and found < low) or (high is not None and found > high):
        raise InputError(f"{name} should be a number{_range(low, high)}, found {shown(value)}.")
    return found


def kind(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> Any:
    """`value` where it is of one of `kinds`; `expected` says so in words."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} should be {expected}, found {shown(value)}.")
    return value


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value` where it is one of `choices`; True is not taken for 1."""
    if not any(type(value) is type(c) and value == c for c in choices):
        *others, last = map(shown, choices)
        raise InputError(f"{name} should be {', '.join(others)} or {last}, found {shown(value)}.")
    return value


def seeds(seed: Any, batch: int) -> list[int]:
    """One seed per conversation: `seed`, `seed + 1`, ... of a number, else as many numbers as there are conversations."""
    if isinstance(seed, (str, bytes, dict)) or not hasattr(seed, "__len__"):
        first = whole("seed", seed)
        return [first + b for b in range(batch)]
    if len(seed) != batch:
        raise InputError(f"{batch} conversations need as many seeds, found {len(seed)}.")
    return [whole("every seed", s) for s in seed]


def shown(value: Any, most: int = 60) -> str:
    """`value` as a sentence can hold it: short, on one line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        text = type(value).__name__
    return text if len(text) <= most else f"{text[:most]}... ({type(value).__name__})"


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low}"
    return f" of at most {high}" if low is None else f" from {low} to {high}"
