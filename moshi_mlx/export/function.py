"""Pure functions over named arrays, and how MLX writes them to a file.

A function takes one dictionary and returns its results, then its new state in the order of the names. All functions of a folder
take the same weights, state and sampling; what they differ in is named by `extra`. One file holds a trace for each size of the rings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map_with_path

from ..errors import InputError

WEIGHTS, STATE, SAMPLING, CONDITIONS = "w.", "s.", "sampling.", "c."
# Masks and small tables; anything larger would be a weight that the model does not name.
MOST_CONSTANT_BYTES = 1 << 20

# Which files it writes, and alone reads.
MLX_VERSION: str = mx.__version__  # type: ignore[attr-defined]

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class Function:
    """`call(arrays)` -> results by name, and the new state. `extra`: inputs of its own, one set for each kind of call.

    `begins`: it is called on fresh states only.
    """

    name: str
    call: Callable[[Arrays], tuple[Arrays, Any]]
    results: Sequence[str]
    extra: Sequence[Arrays]
    begins: bool = False

    def traced(self, _: Sequence[mx.array], arrays: Arrays) -> list[mx.array]:
        results, state = self.call(arrays)
        old = named(STATE, state)
        # A frame with an end mark gives every row of the encoder a clock of its own, which no trace expects.
        new = [old[name].reshape(arrays[name].shape) for name in sorted(old)]
        return [*(results[name] for name in self.results), *new]

    def write(self, path: Path, examples: Sequence[Arrays]) -> None:
        """One trace for every example and kind of call."""
        try:
            with mx.exporter(str(path), self._keywords) as export:
                for arrays in examples:
                    for extra in self.extra:
                        export([], {**arrays, **extra})
        except (RuntimeError, ValueError) as e:
            raise InputError(f"MLX {MLX_VERSION} cannot write this model's frame: {e}") from None

    def reads(self, arrays: Arrays) -> set[str]:
        """Names of the inputs that the graph looks at, over all kinds of call."""
        return set().union(*(self._reads({**arrays, **extra}) for extra in self.extra))

    def _reads(self, arrays: Arrays) -> set[str]:
        letters: dict[str, str] = {}
        read: set[str] = set()

        def look(part: dict) -> None:
            if part["type"] == "keyword_inputs":
                letters.update((letter, name) for name, letter in part["keywords"])
            elif part["type"] in ("primitive", "outputs"):
                read.update(letter for letter, *_ in part["inputs" if part["type"] == "primitive" else "outputs"])
            elif part["type"] == "constants":
                size = sum(array.nbytes for _, array in part["constants"])
                if size > MOST_CONSTANT_BYTES:
                    raise AssertionError(f"{self.name}: {size} bytes of constants; a weight of the step is not named")

        mx.export_function(look, self._keywords, [], arrays)
        return {letters[letter] for letter in read if letter in letters}

    def _keywords(self, *args: mx.array, **arrays: mx.array) -> list[mx.array]:
        return self.traced(args, arrays)


def named(prefix: str, tree: Any) -> Arrays:
    """The arrays of a tree by prefix and path."""
    return {prefix + name: array for name, array in dict(tree_flatten(tree)).items()}


def tree_of(prefix: str, arrays: Mapping[str, mx.array], like: Any) -> Any:
    """The inverse of `named`: a tree like `like`, with its empty containers, which have no names."""
    return tree_map_with_path(lambda path, _: arrays[prefix + path], like)
