"""Weights rearranged for the step: fewer, larger operations from the same numbers.

Made from a loaded (and quantised) model when its first step is built, and never saved. Nothing is held twice: where tables or
matrices are stacked, the modules they came from keep views of the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..modules.embedding import QuantizedTokenEmbedding, TokenEmbedding
from ..modules.matrix import PARTS, Matrix, set_matrix, split_columns


def stack(modules: Sequence[nn.Module]) -> Matrix | None:
    """The rows of several modules as one matrix, if they are stored alike; the modules keep views of it."""
    parts = [Matrix.of(m) for m in modules]
    if len({p.packing for p in parts}) != 1:
        return None
    whole = Matrix.stacked(parts)
    start = 0
    for m, p in zip(modules, parts, strict=True):
        stop = start + p.weight.shape[0]
        set_matrix(m, whole.part(start, stop))
        start = stop
    mx.eval(whole.weight, whole.scales, whole.biases, [m.parameters() for m in modules])
    return whole


class _Stacked:
    """Rows of several modules in one matrix."""

    def __init__(self, matrix: Matrix):
        self._matrix = matrix

    def derived(self) -> dict[str, Any]:
        """The arrays of the matrix."""
        return {name: array for name in PARTS if (array := getattr(self._matrix, name)) is not None}

    def put_derived(self, arrays: dict[str, Any]) -> None:
        """Others of the same form."""
        self._matrix = replace(self._matrix, **arrays)


class StackedTables(_Stacked):
    """Embedding tables of several channels as one: a frame's tokens are gathered, and their rows added, at once."""

    def __init__(self, matrix: Matrix, counts: Sequence[int]):
        super().__init__(matrix)
        self._starts = mx.array([sum(counts[:i]) for i in range(len(counts))], mx.int32)

    @staticmethod
    def of(tables: Sequence[nn.Module]) -> StackedTables | None:
        """One table of several plain ones that are stored alike; else None."""
        plain = all(isinstance(t, (TokenEmbedding, QuantizedTokenEmbedding)) and t.is_plain for t in tables)
        counts = [t.weight.shape[0] for t in tables]
        matrix = stack(tables) if plain and len(tables) > 1 else None
        return None if matrix is None else StackedTables(matrix, counts)

    def total(self, tokens: mx.array, dtype: mx.Dtype) -> mx.array:
        """`tokens [B, n]`, one per table, -1 for nothing -> the sum of their rows `[B, 1, d]`."""
        rows = self._matrix.rows(mx.maximum(tokens, 0) + self._starts, dtype)
        return mx.sum(mx.where((tokens < 0)[..., None], 0, rows), axis=1, keepdims=True).astype(dtype)


class StackedLinears(_Stacked):
    """Linear layers without bias that read the same input, as one product."""

    def __init__(self, matrix: Matrix, count: int):
        super().__init__(matrix)
        self._count = count

    @staticmethod
    def of(layers: Sequence[nn.Module]) -> StackedLinears | None:
        matrix = stack(layers) if len(layers) > 1 else None
        return None if matrix is None else StackedLinears(matrix, len(layers))

    def __call__(self, x: mx.array, count: int | None = None) -> list[mx.array]:
        """Outputs of the first `count` layers (default: all) for `x [..., in]`, in order."""
        count = self._count if count is None else count
        rows = self._matrix.weight.shape[0] // self._count
        matrix = self._matrix if count == self._count else self._matrix.part(0, count * rows)
        return split_columns(matrix.product(x), count)


def unpacked_table(table: Any, dtype: mx.Dtype) -> Any:
    """A small packed table as plain rows of `dtype`: reading one is then a single gather."""
    if not isinstance(table, QuantizedTokenEmbedding):
        return table
    plain = TokenEmbedding(1, 1)
    plain.weight = Matrix.of(table).rows(mx.arange(table.weight.shape[0]), dtype)
    mx.eval(plain.weight)
    return plain
