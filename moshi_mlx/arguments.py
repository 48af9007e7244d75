"""Arguments that cannot be, told in one sentence: checks shared by all that takes numbers from a program."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np

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


def function(name: str, value: Any) -> Any:
    """`value` where it can be called."""
    if not callable(value):
        raise InputError(f"{name} should be a function, found {type(value).__name__}.")
    return value


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value` where it is one of `choices`; True is not taken for 1."""
    if not any(type(value) is type(c) and value == c for c in choices):
        *others, last = map(shown, choices)
        raise InputError(f"{name} should be {', '.join(others)} or {last}, found {shown(value)}.")
    return value


def tokens(name: str, value: Any, low: int, high: int) -> np.ndarray:
    """`value` as an array of whole numbers from `low` to `high`, int64 of the same shape; an array of MLX is evaluated for it.

    A number beyond its table would be looked up all the same, wherever in memory that is.
    """
    try:
        found = np.asarray(value)
        with np.errstate(invalid="ignore"):
            whole_numbers = found.astype(np.int64)
        if found.dtype.kind not in "iuf" or (found != whole_numbers).any():
            raise ValueError
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise InputError(f"{name} should be whole numbers, found {shown(value)}.") from None
    if whole_numbers.size and (whole_numbers.min() < low or whole_numbers.max() > high):
        raise InputError(f"{name} should be {low} .. {high}, found {whole_numbers.min()} .. {whole_numbers.max()}.")
    return whole_numbers


def mask(name: str, value: Any, rows: int, what: str = "rows") -> np.ndarray:
    """`value` as bool `[rows]`: True or False for each of them; `what` they are."""
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        found = np.zeros(0)
    if found.dtype != bool or found.shape != (rows,):
        raise InputError(f"{name} should be True or False for each of {rows} {what}, found {shown(value)}.")
    return found


def seeds(seed: Any, batch: int) -> list[int]:
    """One seed per conversation: `seed`, `seed + 1`, ... of a number, else as many numbers as there are conversations."""
    if isinstance(seed, (str, bytes, Mapping, Set)) or not hasattr(seed, "__len__") or getattr(seed, "ndim", 1) != 1:
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
