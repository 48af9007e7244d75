"""The device that computes, and the few operations that depend on it.

On a GPU they are MLX's own. What stands in for them on MLX's CPU backend, which runs the tests on machines without one, is in `cpu`.
"""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..config.parts import TransformerConfig
from .cpu import cores, layout, rotation


def on_gpu() -> bool:
    """Whether operations of this thread run on a GPU, asked anew at every call. What the *machine* has is asked of `mx.metal` and `mx.cuda`."""
    return mx.default_device() == mx.gpu


def packed_product(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int, mode: str
) -> mx.array:
    """`x [..., columns]` times a packed matrix `[rows, columns]` -> `[..., rows]`."""
    if on_gpu():
        return mx.quantized_matmul(x, weight, scales, biases, True, group_size, bits, mode)
    return cores.packed_product(x, weight, scales, biases, group_size, bits, mode)


def own_rotation(cfg: TransformerConfig, start: mx.array, length: int) -> Callable[[mx.array], mx.array] | None:
    """The rotary embedding of `modules.attention.make_rotation` where the device has a better way than `mx.fast.rope`, else None."""
    return None if on_gpu() else rotation.make_rotation(cfg, start, length)


def lay_out(module: nn.Module) -> None:
    """Store matrices as the device multiplies them fastest, to the same values. A GPU takes them as they are."""
    if not on_gpu():
        layout.lay_out(module)


def by_columns(array: mx.array) -> bool:
    """Whether `lay_out` left a matrix as a view of its transpose."""
    return not on_gpu() and layout.by_columns(array)


def takes_overlapping_rows() -> bool:
    """Whether products read a matrix whose rows overlap in memory as it lies. CUDA's library wants rows apart by their width at least."""
    return not (mx.cuda.is_available() and on_gpu())


def spare_stream() -> mx.Stream | None:
    """Where work beside the main work runs; None is the default stream."""
    return None if on_gpu() else cores.streams()[-1]
