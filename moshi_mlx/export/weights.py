"""The weights of a model as a file holds them and as a trace takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import mlx.core as mx

from ..machine import device
from ..models.step_weights import StepWeights
from .function import WEIGHTS, Arrays


class FileWeights:
    """Weights of several models, `parts` by a name for each. Stored row by row: a matrix kept by columns is stored transposed."""

    def __init__(self, parts: Mapping[str, StepWeights]):
        self._parts = dict(parts)
        self._turned = {
            self._name(part, name)
            for part, weights in self._parts.items()
            for name, array in weights.arrays().items()
            if device.by_columns(array)
        }

    @staticmethod
    def _name(part: str, name: str) -> str:
        return f"{WEIGHTS}{part}.{name}"

    def arrays(self) -> Arrays:
        """Name in a file -> array as it is stored; nothing is copied."""
        found: Arrays = {}
        for part, weights in self._parts.items():
            found.update({self._name(part, name): array for name, array in weights.arrays().items()})
        return {name: array.T if name in self._turned else array for name, array in found.items()}

    @contextmanager
    def replaced(self, arrays: Mapping[str, mx.array]) -> Iterator[None]:
        """The models read `arrays`, by their names in a file; those that are not given stay as they are."""
        with ExitStack() as stack:
            for part, weights in self._parts.items():
                own = {}
                for name in weights.arrays():
                    given = arrays.get(self._name(part, name))
                    if given is not None:
                        own[name] = given.T if self._name(part, name) in self._turned else given
                stack.enter_context(weights.replaced(own))
            yield
