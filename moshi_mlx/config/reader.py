"""Reads a JSON object key by key; whatever is wrong with it is one sentence that names the key."""

from __future__ import annotations

import difflib
import math
from typing import Any

from ..errors import ConfigError, quoted

REQUIRED = object()
# Sizes and counts of parts above these are mistakes: building such a model would take the machine with it.
LARGEST, MOST = 1 << 20, 1024
# Convolutions that follow each other: their strides and dilations multiply.
MOST_BLOCKS = 16
# Of numbers that are no sizes: rotary periods, scales, seconds.
LARGEST_NUMBER = 10**9
NUMBER = (int, float)
OPTIONAL_NUMBER = (int, float, type(None))


class Reader:
    """Takes keys out of a JSON object one by one, checking type and range, and tells which were never asked for."""

    def __init__(self, data: Any, where: str):
        if not isinstance(data, dict):
            raise ConfigError(f"{where} should be a JSON object, found {type(data).__name__}.")
        self.data = dict(data)
        self.where = where
        self.known: set[str] = set()

    def take(
        self,
        key: str,
        kinds: Any,
        default: Any = REQUIRED,
        *,
        low: float | None = None,
        high: float | None = None,
        one_of=None,
    ) -> Any:
        """Value of `key`. `kinds` is a type or a tuple of types; bools never pass as numbers; `low` is inclusive, and so is
        `high`; without one a number has the bound of its kind.
        """
        self.known.add(key)
        if key not in self.data:
            if default is REQUIRED:
                raise ConfigError(f"{self.where} lacks the required key {key!r}.")
            return default
        value = self.data.pop(key)
        kinds = kinds if isinstance(kinds, tuple) else (kinds,)
        bool_as_number = isinstance(value, bool) and bool not in kinds
        if not isinstance(value, kinds) or bool_as_number:
            names = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
            raise ConfigError(f"{self.where}: {key!r} should be {names}, found {quoted(value)}.")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{self.where}: {key!r} should be a finite number, found {quoted(value)}.")
        if low is not None and isinstance(value, NUMBER) and not isinstance(value, bool) and value < low:
            raise ConfigError(f"{self.where}: {key!r} should be at least {low}, found {quoted(value)}.")
        most = high if high is not None else LARGEST_NUMBER if float in kinds else LARGEST
        if isinstance(value, NUMBER) and not isinstance(value, bool) and abs(value) > most:
            raise ConfigError(f"{self.where}: {key!r} should be at most {most}, found {quoted(value)}.")
        if one_of is not None and value not in one_of:
            names = ", ".join("null" if name is None else name for name in one_of)
            raise ConfigError(f"{self.where}: {key!r} should be one of {names}, found {quoted(value)}.")
        return value

    def take_ints(self, key: str, default: Any = REQUIRED, *, low: int = 0, most: int = LARGEST) -> list[int]:
        """A list of at most `most` integers of at least `low`."""
        value = self.take(key, list, default)
        if any(not isinstance(v, int) or isinstance(v, bool) or not low <= v <= LARGEST for v in value):
            raise ConfigError(
                f"{self.where}: {key!r} should be a list of integers of at least {low}, found {quoted(value)}."
            )
        if len(value) > most:
            raise ConfigError(f"{self.where}: {key!r} should list at most {most} integers, found {len(value)}.")
        return list(value)

    def ignore(self, *keys: str) -> None:
        """Accept `keys` whatever they say: they are known to have no effect."""
        for key in keys:
            self.known.add(key)
            self.data.pop(key, None)

    def finish(self) -> None:
        if not self.data:
            return
        key = sorted(self.data)[0]
        close = difflib.get_close_matches(key, sorted(self.known), n=1)
        hint = (
            f" Did you mean {close[0]!r}?" if close else " Remove it, or update moshi_mlx if the checkpoint is newer."
        )
        raise ConfigError(f"{self.where} has the unknown key {quoted(key)} (value {quoted(self.data[key])}).{hint}")
