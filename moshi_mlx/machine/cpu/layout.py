"""Matrices stored as MLX's CPU backend multiplies them fastest.

Its product with `[in, out]` is twice as fast as with `[out, in]`: layers keep a transposed view of such a matrix. Its product with packed
weights is scalar code, slower than either: a model that takes little memory unpacked is unpacked, to the same values, and a larger one
multiplied on all cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

from .. import memory
from . import cores

# Packed matrices that take at most this much as float32 are unpacked.
UNPACK_BYTES = 2 << 30


def lay_out(module: nn.Module) -> None:
    """Rearrange all linear layers of `module`; arrays that layers share stay shared."""
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
            # The view is computed too: what is left to be computed could only be by this thread.
            done[id(m.weight)] = mx.contiguous((_unpacked(m) if isinstance(m, nn.QuantizedLinear) else m.weight).T).T
            mx.eval(done[id(m.weight)])
        layer = _empty_linear(m.get("bias")) if packed else m
        layer.weight = done[id(m.weight)]
        return layer

    module.update_modules(tree_map_with_path(by_columns, module.leaf_modules(), is_leaf=nn.Module.is_module))


def by_columns(array: mx.array) -> bool:
    """Whether a matrix is stored as its transpose and seen through a view."""
    seen = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, copy=False)
    return array.ndim == 2 and seen.flags.f_contiguous and not seen.flags.c_contiguous


class _PackedLinear(nn.QuantizedLinear):
    """The same layer, multiplied on all cores."""

    def __init__(self, layer: nn.QuantizedLinear):
        nn.Module.__init__(self)
        self.group_size, self.bits, self.mode = layer.group_size, layer.bits, layer.mode
        for name, value in layer.parameters().items():
            self[name] = value
        self.freeze()

    def __call__(self, x: mx.array) -> mx.array:
        y = cores.packed_product(
            x, self["weight"], self["scales"], self.get("biases"), self.group_size, self.bits, self.mode
        )
        return y + self["bias"] if "bias" in self else y


def _unpacked(layer: nn.QuantizedLinear) -> mx.array:
    """The weights of `layer` as float32. Scales are widened first, so that no sum is rounded to their type."""
    scales, biases = layer.scales, layer.get("biases")
    if scales.dtype != mx.uint8:
        scales = scales.astype(mx.float32)
    biases = None if biases is None else biases.astype(mx.float32)
    return mx.dequantize(layer.weight, scales, biases, layer.group_size, layer.bits, layer.mode).astype(mx.float32)


def _unpacked_bytes(layers: Sequence[nn.Module]) -> int:
    """Memory of the packed matrices of `layers` as float32, shared ones once."""
    sizes = {id(m.weight): 4 * m.weight.size * 32 // m.bits for m in layers if isinstance(m, nn.QuantizedLinear)}
    return sum(sizes.values())


def _empty_linear(bias: mx.array | None) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    if bias is not None:
        layer.bias = bias
    return layer
