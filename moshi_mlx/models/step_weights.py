"""The arrays that a step reads of a model, by name, and others put in their place while a step is traced.

An exported step takes its weights as inputs. Their names are module paths, and names of the model's own for what was made from them
to step faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten


class Derived(Protocol):
    """Arrays made from weights, which a step reads and files do not hold."""

    def derived(self) -> dict[str, mx.array]: ...

    def put_derived(self, arrays: dict[str, mx.array]) -> None:
        """Others with the same names."""


class StepWeights:
    """The weights of `module` and what is `derived` from them. An array in several places has the name of the first of them."""

    def __init__(self, module: nn.Module, derived: Mapping[str, Derived | None] | None = None):
        self._module = module
        self._derived = {name: part for name, part in (derived or {}).items() if part is not None}

    def _places(self) -> dict[str, mx.array]:
        """Every place and the array there."""
        places = dict(tree_flatten(self._module.parameters()))
        for name, part in self._derived.items():
            places.update({f"{name}.{key}": array for key, array in part.derived().items()})
        return places

    @staticmethod
    def _names(places: Mapping[str, mx.array]) -> dict[str, str]:
        """Place -> the name of its array."""
        first: dict[int, str] = {}
        return {place: first.setdefault(id(array), place) for place, array in places.items()}

    def arrays(self) -> dict[str, mx.array]:
        """Name -> array, each array once."""
        places = self._places()
        return {place: places[place] for place, name in self._names(places).items() if name == place}

    @contextmanager
    def replaced(self, arrays: Mapping[str, mx.array]) -> Iterator[None]:
        """`arrays`, by the names of `arrays()`, stand in every place of those that they are named after."""
        own = self._places()
        names = self._names(own)
        self._put({place: arrays.get(names[place], array) for place, array in own.items()})
        try:
            yield
        finally:
            self._put(own)

    def _put(self, places: Mapping[str, mx.array]) -> None:
        """Weights first: what is derived belongs to those that are there."""
        left = dict(places)
        parts = {
            name: {key: left.pop(f"{name}.{key}") for key in part.derived()} for name, part in self._derived.items()
        }
        self._module.update(tree_unflatten(list(left.items())))
        for name, part in self._derived.items():
            part.put_derived(parts[name])
