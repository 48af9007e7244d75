"""Weights in few bits, one tensor at a time: what `moshi_mlx.quantize` writes, and what `-q` makes of a dense file while it loads.

Both pack the numbers as they are stored, so both make the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import mlx.core as mx

from .weights_file import MX_DTYPES
from .weights_writer import TYPE_NAMES

# Specification of a stored tensor: name, safetensors type, shape.
Spec = tuple[str, str, tuple[int, ...]]


@dataclass(frozen=True)
class Quantization:
    """How one weight is packed."""

    group_size: int
    bits: int
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.mode} {self.bits} bit, group {self.group_size}"


def kept_type(kind: str) -> mx.Dtype:
    """Type of a stored floating-point tensor in MLX, which has no float64."""
    return MX_DTYPES.get(kind, mx.float32)


def is_int8(names: Collection[str]) -> bool:
    """Whether a file holds 8-bit integers with the maximum of each row, whose values are kept in bfloat16."""
    return any(name.endswith("_scb") for name in names)


def pack(weight: mx.array, q: Quantization) -> tuple[mx.array, ...]:
    """`weight [rows, inputs]` packed: the integers, scales, and biases where `q` has them. Scales get the type of `weight`."""
    return tuple(mx.quantize(weight, q.group_size, q.bits, mode=q.mode))


def packed_specs(path: str, shape: tuple[int, ...], kind: str, q: Quantization) -> list[Spec]:
    """What `pack` makes of `{path}.weight` of a stored `kind`, in order."""
    rows, inputs = shape
    groups = inputs // q.group_size
    specs: list[Spec] = [(f"{path}.weight", "U32", (rows, inputs * q.bits // 32))]
    if q.mode != "affine":
        return [*specs, (f"{path}.scales", "U8", (rows, groups))]
    return specs + [(f"{path}.{part}", kind, (rows, groups)) for part in ("scales", "biases")]


def packed_bytes(shape: tuple[int, ...], q: Quantization | None, dtype: mx.Dtype = mx.bfloat16) -> int:
    """Bytes of a layer, scales and biases included; of a dense one without `q`."""
    if q is None:
        return math.prod(shape) * dtype.size
    sizes = {"U32": 4, "U8": 1}
    return sum(
        math.prod(s) * sizes.get(kind, dtype.size) for _, kind, s in packed_specs("", shape, TYPE_NAMES[dtype], q)
    )
