"""The arrays that a step reads of a model, by name, and others put in their place while a step is traced.

An exported step takes its weights as inputs. Their names are module paths, and names of the model's own for what `prepare` has
stacked (see `packed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from ..modules.matrix import PARTS, Matrix


class Stack(Protocol):
    """Rows of several modules in one matrix."""

    matrix: Matrix


class StepWeights:
    """The weights of `module` and of `stacks` made from it. An array in several places has the name of the first of them."""

    def __init__(self, module: nn.Module, stacks: Mapping[str, Stack | None] | None = None):
        self._module = module
        self._stacks = {name: stack for name, stack in (stacks or {}).items() if stack is not None}

    def _places(self) -> list[tuple[str, mx.array]]:
        """Every place and the array there."""
        places = [*tree_flatten(self._module.parameters())]
        for name, stack in self._stacks.items():
            places += [(f"{name}.{p}", a) for p in PARTS if (a := getattr(stack.matrix, p)) is not None]
        return places

    def _names(self) -> dict[str, str]:
        """Place -> the name of its array."""
        first: dict[int, str] = {}
        return {place: first.setdefault(id(array), place) for place, array in self._places()}

    def arrays(self) -> dict[str, mx.array]:
        """Name -> array, each array once."""
        names = self._names()
        return {place: array for place, array in self._places() if names[place] == place}

    @contextmanager
    def replaced(self, arrays: Mapping[str, mx.array]) -> Iterator[None]:
        """`arrays`, by the names of `arrays()`, stand in every place of those that they are named after."""
        names, own = self._names(), self._places()
        self._put([(place, arrays.get(names[place], array)) for place, array in own])
        try:
            yield
        finally:
            self._put(own)

    def _put(self, places: list[tuple[str, mx.array]]) -> None:
        inside = {f"{name}.{p}": (name, p) for name in self._stacks for p in PARTS}
        self._module.update(tree_unflatten([(place, a) for place, a in places if place not in inside]))
        for name, stack in self._stacks.items():
            parts = {inside[place][1]: a for place, a in places if inside.get(place, ("",))[0] == name}
            stack.matrix = replace(stack.matrix, **parts)
