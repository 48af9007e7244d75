"""The numbers of a linear layer or an embedding table, dense or packed, apart from the module that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from ..machine import device

PARTS = ("weight", "scales", "biases")


@dataclass(frozen=True)
class Matrix:
    """`[rows, columns]`; `scales` (and, for affine packing, `biases`) say that `weight` is packed."""

    weight: mx.array
    scales: mx.array | None = None
    biases: mx.array | None = None
    group_size: int = 0
    bits: int = 0
    mode: str = "affine"

    @staticmethod
    def of(module: nn.Module) -> Matrix:
        """The matrix of a linear layer or embedding table of `mlx.nn` or ours."""
        if module.get("scales") is None:
            return Matrix(module.weight)
        return Matrix(
            module.weight, module.scales, module.get("biases"), module.group_size, module.bits, module.mode
        )  # fmt: skip

    @staticmethod
    def stacked(parts: Sequence[Matrix]) -> Matrix:
        """Rows of several matrices that are packed alike, one after the other."""
        first = parts[0]

        def join(name: str) -> mx.array | None:
            arrays = [getattr(p, name) for p in parts]
            return None if arrays[0] is None else mx.concatenate(arrays, axis=0)

        weight = join("weight")
        assert weight is not None
        return Matrix(weight, join("scales"), join("biases"), first.group_size, first.bits, first.mode)

    def part(self, start: int, stop: int) -> Matrix:
        """Rows `start` to `stop`, a view."""

        def cut(a: mx.array | None) -> mx.array | None:
            return None if a is None else a[start:stop]

        return Matrix(
            self.weight[start:stop], cut(self.scales), cut(self.biases), self.group_size, self.bits, self.mode
        )

    @property
    def packing(self) -> tuple:
        """What has to agree for two matrices to be stacked."""
        scales = None if self.scales is None else self.scales.dtype
        return self.weight.dtype, self.weight.shape[1], scales, self.group_size, self.bits, self.mode

    def product(self, x: mx.array) -> mx.array:
        """`x [..., columns]` -> `[..., rows]`."""
        if self.scales is None:
            return x @ self.weight.T
        return device.packed_product(x, self.weight, self.scales, self.biases, self.group_size, self.bits, self.mode)

    def rows(self, index: mx.array, dtype: mx.Dtype | None = None) -> mx.array:
        """Rows of non-negative `index [...]` -> `[..., columns]` in `dtype` (None: as stored)."""
        if self.scales is None:
            y = self.weight[index]
            return y if dtype is None else y.astype(dtype)
        dtype = dtype or (mx.bfloat16 if self.scales.dtype == mx.uint8 else self.scales.dtype)

        def gather(a: mx.array) -> mx.array:
            # Widened before q * scale + bias, so that the sum is not rounded to the type of the scales.
            return a[index] if a.dtype == mx.uint8 else a[index].astype(dtype)

        biases = None if self.biases is None else gather(self.biases)
        y = mx.dequantize(self.weight[index], gather(self.scales), biases, self.group_size, self.bits, self.mode)
        return y.astype(dtype)


def split_columns(y: mx.array, count: int) -> list[mx.array]:
    """`y [..., n]` -> `count` equal parts `[..., n / count]`, views.

    Of a single row they are cut as rows of a matrix: a piece of a row keeps the stride of the whole, also where there is no second row, what is
    computed from it inherits that, and Metal's products copy what has another stride than its width.
    """
    if y.size != y.shape[-1]:
        return list(mx.split(y, count, axis=-1))
    shape = (*y.shape[:-1], y.shape[-1] // count)
    return [part.reshape(shape) for part in mx.split(y.reshape(count, -1), count, axis=0)]


def set_matrix(module: nn.Module, matrix: Matrix) -> None:
    """Let `module` hold `matrix`, packed as it was."""
    for name in PARTS:
        if getattr(matrix, name) is not None:
            module[name] = getattr(matrix, name)
