"""Key/value rings as values, and the geometry of one call on them.

A ring is an array `[2, B, H, C, D]`, keys then values, so that a step writes both at once; slot `p % C` holds position `p`.
Which slots a query sees is decided by *position*, never by physical order, so a ring that has wrapped needs no unrolling. A query at position p sees the
positions q with `0 <= p - q < context`, itself included, whatever the length of the call (lm.md 4.2, mimi.md 4.2 "exact").

Rows of a batch either share one clock (`start` is a scalar: writes are in place, the fast case) or each have their own
(`start` is `[B]`), as conversations that begin, pause and end independently do.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np

def init_ring(batch: int, heads: int, capacity: int, head_dim: int, dtype: mx.Dtype) -> mx.array:
    """An empty ring. Zeros, not garbage: a masked slot must not hold NaN."""
    return mx.zeros((2, batch, heads, capacity, head_dim), dtype)


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

    @property
    def first_slot(self) -> mx.array:
        """Where the call begins, `[1]`, for rows that share one clock."""
        return (self.start % self.capacity if self.wraps else self.start).reshape(1)

    @property
    def slots(self) -> mx.array:
        """Slots of the last `min(length, capacity)` new positions, `[n]` or `[B, n]`."""
        n = min(self.length, self.capacity)
        return (_column(self.start) + numbers(self.length - n, self.length)) % self.capacity


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


def attend(q: mx.array, kv: mx.array, mask: mx.array | None = None) -> mx.array:
    """Scaled dot-product attention of `q [B, Hq, T, D]` to keys and values `[2, B, H, S, D]`, softmax in float32."""
    # Views: indexing by a number would gather, that is, copy.
    k, v = (a.reshape(a.shape[1:]) for a in mx.split(kv, 2, axis=0))
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)


def ring_attend(q: mx.array, kv: mx.array, ring: mx.array, span: Span) -> tuple[mx.array, mx.array]:
    """Attend new queries `[B, Hq, T, D]` to the window, store the new keys and values `[2, B, H, T, D]`; the new ring follows."""
    if span.in_place:
        ring = _write(ring, kv, span)
        return attend(q, ring, span.mask), ring
    seen = mx.concatenate([ring, kv], axis=3)
    return attend(q, seen, span.mask), _write(ring, kv, span)


def _write(ring: mx.array, new: mx.array, span: Span) -> mx.array:
    """Store `new` at its slots. The caller must not keep the old ring, else MLX copies it."""
    contiguous = span.start.ndim == 0 and (span.length == 1 or span.in_place)
    if contiguous and span.execute is None:
        return mx.slice_update(ring, new, span.first_slot, (3,))
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
