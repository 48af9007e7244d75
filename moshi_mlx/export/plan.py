"""What a folder will hold, before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from .function import Arrays, Function


@dataclass(frozen=True)
class Start:
    """A state from which conversations begin. Of the `capacity` slots of its rings those that hold something; the rest is empty."""

    name: str
    state: Arrays
    capacity: int


@dataclass(frozen=True)
class Rings:
    """State that grows: names, the axis of its slots, and the sizes it goes through, the last one for ever."""

    names: Sequence[str]
    axis: int
    capacities: Sequence[int]

    def cut(self, state: Arrays, slots: int) -> Arrays:
        """`state` with `slots` slots of every ring: what a file need not hold are zeros."""

        def first(name: str, array: mx.array) -> mx.array:
            return mx.split(array, [slots], axis=self.axis)[0] if name in self.names else array

        return {name: first(name, array) for name, array in state.items()}


@dataclass(frozen=True)
class Plan:
    """The functions, what they all take (`fixed` goes into the weights file, `sampling` is given anew), and the states.

    `states` are examples, one for each size of the rings. `facts` is the part of the manifest that tells of the model.
    """

    functions: Sequence[Function]
    fixed: Arrays
    states: Sequence[Arrays]
    starts: Sequence[Start]
    facts: dict[str, Any]
    sampling: Arrays = field(default_factory=dict)
    rings: Rings | None = None
    about: str = ""

    def examples(self, fresh: bool = False) -> list[Arrays]:
        """Inputs that all functions take, for every size of the rings, or for those that conversations begin with."""
        states = (
            zip(self.rings.capacities, self.states, strict=True) if self.rings is not None else [(0, self.states[0])]
        )
        begin = {start.capacity for start in self.starts}
        return [{**self.fixed, **self.sampling, **state} for size, state in states if not fresh or size in begin]
