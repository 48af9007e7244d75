"""Key/value rings as values, and the geometry of one call on them.

A ring is an array `[2, B, H, C, D]`, keys then values, so that a step writes both at once; slot `p % C` holds position `p`.
Which slots a query sees is decided by *position*, never by physical order, so a ring that has wrapped needs no unrolling. A query at position p sees the
positions q with `0 <= p - q < context`, itself included, whatever the length of the call (lm.md 4.2, mimi.md 4.2 "exact").

Rows of a batch either share one clock (`start` is a scalar: writes are in place, the fast case) or each have their own
(`start` is `[B]`), as conversations that begin, pause and end independently do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import mlx.core as mx
import numpy as np

from ..errors import InputError

# Keys and values `[2, B, H, S, D]`, or the same packed: `{"packed", "scales", "biases"}`.
Ring = mx.array | dict[str, mx.array]

GROUP_SIZES = (64, 32)


def init_ring(batch: int, heads: int, capacity: int, head_dim: int, dtype: mx.Dtype, bits: int | None = None) -> Ring:
    """An empty ring. Zeros, not garbage: a masked slot must not hold NaN. `bits` (4 or 8) stores it packed."""
    ring = mx.zeros((2, batch, heads, capacity, head_dim), dtype)
    if bits is None:
        return ring
    group = next((g for g in GROUP_SIZES if head_dim % g == 0), None)
    if group is None:
        raise InputError(
            f"keys and values can be packed where heads have a multiple of {GROUP_SIZES[-1]} features, here {head_dim}."
        )
    return _pack(ring, group, bits)


def _pack(kv: mx.array, group_size: int, bits: int) -> dict[str, mx.array]:
    return dict(zip(("packed", "scales", "biases"), mx.quantize(kv, group_size, bits), strict=True))


def map_ring(change: Callable[[mx.array], mx.array], ring: Ring) -> Ring:
    """`change` applied to the array, or to every array, of a ring; slots are axis 3 of all of them."""
    return {name: change(a) for name, a in ring.items()} if isinstance(ring, dict) else change(ring)


def slots_of(ring: Ring) -> int:
    return (ring["packed"] if isinstance(ring, dict) else ring).shape[3]


def ring_capacity(context: int, stride: int) -> int:
    """Slots needed so that `stride` new positions can be written before the oldest query of the call reads.

    A whole number of strides, so that an aligned call never straddles the end of the ring; `context` itself for stride 1.
    """
    return -(-(context + stride - 1) // stride) * stride


@dataclass(frozen=True)
class Span:
    """The `length` new positions of one call, from `start`, on rings of `capacity` slots.

    `in_place`: keys are written first and the ring alone is attended; otherwise old ring and new keys are attended side
    by side and written afterwards, which is right for any length. `mask` `[1 or B, 1, T, S]` is true where a query sees
    a key. `execute` `[B]`, if given, is false for rows that must come out unchanged.
    """

    start: mx.array
    length: int
    capacity: int
    in_place: bool
    wraps: bool
    mask: mx.array
    execute: mx.array | None = None

    # Once for all layers: two computations with constants of their own would be two in the compiled graph as well.
    @cached_property
    def slots(self) -> mx.array:
        """Slots of the last `min(length, capacity)` new positions, `[n]` or `[B, n]`."""
        n = min(self.length, self.capacity)
        positions = _column(self.start)
        if self.length > 1:
            positions = positions + numbers(self.length - n, self.length)
        elif positions.ndim == 0:
            positions = positions.reshape(1)
        return positions % self.capacity if self.wraps else positions


def make_span(
    start: mx.array,
    length: int,
    capacity: int,
    context: int | None,
    stride: int = 1,
    execute: mx.array | None = None,
) -> Span:
    """Geometry of a call of `length` positions at `start` (int32, `[]` or `[B]`).

    `stride` promises that every call so far had a multiple of `stride` positions, which lets a call of exactly `stride`
    write before it reads. Without `context` the caller keeps `capacity` above the last position.
    """
    first = _column(start)
    queries = first + numbers(0, length)
    window = capacity if context is None else context
    in_place = length == stride and capacity >= ring_capacity(min(window, capacity), stride)
    if in_place and length == 1 and capacity <= window:
        visible = numbers(0, capacity) <= first
        visible = visible[..., None, :]
    else:
        last = queries[..., -1:] if in_place else first - 1
        slot = numbers(0, capacity)
        keys = last - mx.remainder(last - slot, capacity)
        if not in_place:
            keys = mx.concatenate([keys, queries], axis=-1)
        age = queries[..., :, None] - keys[..., None, :]
        visible = (keys[..., None, :] >= 0) & (age >= 0) & (age < window)
    mask = visible[None, None] if start.ndim == 0 else visible[:, None]
    # Smaller rings than the window are made larger before they are full.
    wraps = context is not None and capacity >= context
    return Span(start, length, capacity, in_place, wraps, mask, execute)


def numbers(start: int, stop: int) -> mx.array:
    """`start .. stop - 1` as a constant: `mx.arange` would compute it at every step."""
    return mx.array(np.arange(start, stop, dtype=np.int32))


def causal_mask(length: int, context: int | None) -> mx.array:
    """`[1, 1, T, T]`, for a call without a ring."""
    age = mx.arange(length)[:, None] - mx.arange(length)[None, :]
    visible = age >= 0 if context is None else (age >= 0) & (age < context)
    return visible[None, None]


def attend(q: mx.array, kv: Ring, mask: mx.array | None = None) -> mx.array:
    """Scaled dot-product attention of `q [B, Hq, T, D]` to keys and values `[2, B, H, S, D]`, softmax in float32."""
    scale = q.shape[-1] ** -0.5
    if isinstance(kv, dict):
        return _attend_packed(q * scale, kv, mask)
    k, v = _halves(kv)
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)


def _halves(kv: mx.array) -> list[mx.array]:
    """Keys and values. Views: indexing by a number would gather, that is, copy."""
    return [a.reshape(a.shape[1:]) for a in mx.split(kv, 2, axis=0)]


def _attend_packed(q: mx.array, kv: dict[str, mx.array], mask: mx.array | None) -> mx.array:
    """The same with packed keys and values, which are multiplied as they are."""
    batch, heads, length, size = q.shape
    kv_heads = kv["packed"].shape[2]
    group_size, bits = size // kv["scales"].shape[-1], 32 * kv["packed"].shape[-1] // size
    (k, v), (k_scales, v_scales), (k_biases, v_biases) = (_halves(kv[name]) for name in ("packed", "scales", "biases"))
    grouped = q.reshape(batch, kv_heads, -1, size)
    scores = mx.quantized_matmul(grouped, k, k_scales, k_biases, True, group_size, bits).reshape(
        batch, heads, length, -1
    )
    if mask is not None:
        scores = mx.where(mask, scores, -mx.inf)
    weights = mx.softmax(scores, axis=-1, precise=True).reshape(batch, kv_heads, -1, scores.shape[-1])
    return mx.quantized_matmul(weights, v, v_scales, v_biases, False, group_size, bits).reshape(q.shape)


def ring_attend(q: mx.array, kv: mx.array, ring: Ring, span: Span) -> tuple[mx.array, Ring]:
    """Attend new queries `[B, Hq, T, D]` to the window, store the new keys and values `[2, B, H, T, D]`; the new ring follows."""
    if isinstance(ring, dict):
        size = kv.shape[-1]
        new: Ring = _pack(kv, size // ring["scales"].shape[-1], 32 * ring["packed"].shape[-1] // size)
    else:
        new = kv
    written = _zip_rings(lambda old, add: _write(old, add, span), ring, new)
    if span.in_place:
        return attend(q, written, span.mask), written
    return attend(q, _zip_rings(lambda old, add: mx.concatenate([old, add], axis=3), ring, new), span.mask), written


def _zip_rings(change: Callable[[mx.array, mx.array], mx.array], a: Ring, b: Ring) -> Ring:
    if isinstance(a, dict) and isinstance(b, dict):
        return {name: change(a[name], b[name]) for name in a}
    return change(a, b)  # type: ignore[arg-type]


def _write(ring: mx.array, new: mx.array, span: Span) -> mx.array:
    """Store `new` at its slots, in place: MLX gives the old ring's memory to the new one where nobody else holds it.

    So the caller must not keep the old ring, else it is copied. And one GPU kernel writes where `slice_update` takes two, one of which
    computes the place from an index on the device.
    """
    new = new[..., -span.capacity :, :]
    slots = span.slots
    index = slots[None, None, None, :, None] if slots.ndim == 1 else slots[None, :, None, :, None]
    index = mx.broadcast_to(index, new.shape)
    if span.execute is not None:
        old = mx.take_along_axis(ring, index, axis=3)
        new = mx.where(span.execute[None, :, None, None, None], new, old)
    return mx.put_along_axis(ring, index, new, axis=3)


def _column(start: mx.array) -> mx.array:
    return start if start.ndim == 0 else start[:, None]
