"""Weights rearranged for the step: fewer, larger operations from the same numbers.

Made from a loaded (and quantised) model when its first step is built, and never saved. Nothing is held twice: where tables or
matrices are stacked, the modules they came from keep views of the stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from ..machine import memory
from ..modules.embedding import QuantizedTokenEmbedding, TokenEmbedding
from ..modules.matrix import Matrix, set_matrix

# Packed matrices that take at most this much as float32 are unpacked on the CPU backend.
UNPACK_BYTES = 2 << 30


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


class StackedTables:
    """Embedding tables of several channels as one: a frame's tokens are gathered, and their rows added, at once."""

    def __init__(self, matrix: Matrix, counts: Sequence[int]):
        self._matrix = matrix
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


class StackedLinears:
    """Linear layers without bias that read the same input, as one product."""

    def __init__(self, matrix: Matrix, count: int):
        self._matrix, self._count = matrix, count

    @staticmethod
    def of(layers: Sequence[nn.Module]) -> StackedLinears | None:
        matrix = stack(layers) if len(layers) > 1 else None
        return None if matrix is None else StackedLinears(matrix, len(layers))

    def __call__(self, x: mx.array, count: int | None = None) -> list[mx.array]:
        """Outputs of the first `count` layers (default: all) for `x [..., in]`, in order."""
        count = self._count if count is None else count
        rows = self._matrix.weight.shape[0] // self._count
        matrix = self._matrix if count == self._count else self._matrix.part(0, count * rows)
        return list(mx.split(matrix.product(x), count, axis=-1))


def unpacked_table(table: Any, dtype: mx.Dtype) -> Any:
    """A small packed table as plain rows of `dtype`: reading one is then a single gather."""
    if not isinstance(table, QuantizedTokenEmbedding):
        return table
    plain = TokenEmbedding(1, 1)
    plain.weight = Matrix.of(table).rows(mx.arange(table.weight.shape[0]), dtype)
    mx.eval(plain.weight)
    return plain


def lay_out_for_cpu(module: nn.Module) -> None:
    """Store matrices as the CPU backend multiplies them fastest; nothing happens on a GPU.

    Its product with `[in, out]` is twice as fast as with `[out, in]`: layers keep a transposed view of such a matrix. Its product with
    packed weights is scalar code, slower than either: a model that takes little memory unpacked is unpacked, to the same values, and a
    larger one multiplied on all cores.
    """
    if mx.default_device() != mx.cpu:
        return
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.QuantizedLinear))]
    unpack = _unpacked_bytes(layers) <= min(UNPACK_BYTES, memory.available_bytes() // 4)
    done: dict[int, mx.array] = {}

    def by_columns(path: str, m: nn.Module) -> nn.Module:
        if isinstance(m, nn.QuantizedLinear) and not unpack:
            return _PackedLinear(m)
        packed = isinstance(m, nn.QuantizedLinear)
        if not isinstance(m, nn.Linear) and not packed:
            return m
        if id(m.weight) not in done:
            weight = Matrix.of(m).rows(mx.arange(m.weight.shape[0]), mx.float32) if packed else m.weight
            columns = mx.contiguous(weight.T)
            mx.eval(columns)
            done[id(m.weight)] = columns.T
        layer = _empty_linear(m.get("bias")) if packed else m
        layer.weight = done[id(m.weight)]
        return layer

    module.update_modules(tree_map_with_path(by_columns, module.leaf_modules(), is_leaf=nn.Module.is_module))


class _PackedLinear(nn.QuantizedLinear):
    """The same layer, multiplied on all cores."""

    def __init__(self, layer: nn.QuantizedLinear):
        nn.Module.__init__(self)
        self.group_size, self.bits, self.mode = layer.group_size, layer.bits, layer.mode
        set_matrix(self, Matrix.of(layer))
        if "bias" in layer:
            self.bias = layer.bias
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        y = Matrix.of(self).product(x)
        return y + self["bias"] if "bias" in self else y


def _unpacked_bytes(layers: Sequence[nn.Module]) -> int:
    """Memory of the packed matrices of `layers` as float32, shared ones once."""
    sizes = {id(m.weight): 4 * m.weight.size * 32 // m.bits for m in layers if isinstance(m, nn.QuantizedLinear)}
    return sum(sizes.values())


def _empty_linear(bias: mx.array | None) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    if bias is not None:
        layer.bias = bias
    return layer
