"""Self-attention, cross-attention and positional embeddings (lm.md 4.2 and 4.4). Weights only; state is passed in."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..config.parts import TransformerConfig
from ..machine import device
from .kv_cache import Ring, attend
from .matrix import Matrix

# (queries [B, Hq, T, D], keys and values [2, B, H, T, D]) -> (output [B, Hq, T, D], new cache)
Attend = Callable[[mx.array, mx.array], tuple[mx.array, Ring]]
# Query, key and value groups [B, G, H, T, D] -> the same, all but the values rotated
Rotate = Callable[[mx.array], mx.array]


class Attention(nn.Module):
    """Packed rows of `in_proj`: queries, then keys, then values, heads contiguous within each.

    The heads of keys, of values and of each as large share of the queries form a group: `kv_repeat` + 2 groups.
    """

    def __init__(self, cfg: TransformerConfig):
        super().__init__()
        self._groups, self._kv_heads, self._head_dim = cfg.kv_repeat + 2, cfg.kv_heads, cfg.head_dim
        self.in_proj = nn.Linear(cfg.d_model, (cfg.num_heads + 2 * cfg.kv_heads) * cfg.head_dim, bias=False)
        self.out_proj = nn.Linear(cfg.d_model, cfg.d_model, bias=False)

    def __call__(self, x: mx.array, attend_fn: Attend, rotate: Rotate | None = None) -> tuple[mx.array, Ring]:
        """`x [B, T, d]`, or `[B, d]` for one position; `attend_fn` sees rotated queries and keys and decides what they attend to."""
        batch, length = x.shape[0], 1 if x.ndim == 2 else x.shape[1]
        groups = self.in_proj(x)
        if x.ndim == 2:
            groups = groups.reshape(batch, self._groups, self._kv_heads, 1, self._head_dim)
        else:
            groups = groups.reshape(batch, length, self._groups, self._kv_heads, self._head_dim).transpose(
                0, 2, 3, 1, 4
            )
        if rotate is not None:
            groups = rotate(groups)
        q = groups[:, :-2].reshape(batch, -1, length, self._head_dim)
        # Keys and values change places with the rows; for one row that is a reshape.
        kv = groups[:, -2:]
        kv = kv.reshape(2, 1, self._kv_heads, length, self._head_dim) if batch == 1 else kv.swapaxes(0, 1)
        y, cache = attend_fn(q, kv)
        y = y.reshape(batch, -1) if x.ndim == 2 else merge_heads(y)
        return self.out_proj(y), cache


class CrossAttention(nn.Module):
    """Attention to a fixed source: no positions, no mask, all heads their own keys and values (lm.md 4.4)."""

    def __init__(self, cfg: TransformerConfig):
        super().__init__()
        self._heads = cfg.num_heads
        self.in_proj = nn.Linear(cfg.d_model, 3 * cfg.d_model, bias=False)
        self.out_proj = nn.Linear(cfg.d_model, cfg.d_model, bias=False)

    def keys_values(self, source: mx.array) -> mx.array:
        """Keys and values `[2, B, H, S, D]` of `source [B, S, d]`, computed once per conversation."""
        _, k, v = mx.split(split_heads(self.in_proj(source), 3 * self._heads), 3, axis=1)
        return mx.stack([k, v])

    def __call__(self, x: mx.array, keys_values: mx.array, mask: mx.array | None = None) -> mx.array:
        """`x [B, T, d]` or `[B, d]`; `mask [B, 1, 1, S]` is true where there is something, for rows whose sources differ in length."""
        q = split_heads(self._queries(x), self._heads)
        return self.out_proj(merge_heads(attend(q, keys_values, mask)).reshape(x.shape))

    def _queries(self, x: mx.array) -> mx.array:
        """The query rows alone: two thirds of the packed product would be thrown away."""
        return Matrix.of(self.in_proj).part(0, x.shape[-1]).product(x)


def split_heads(x: mx.array, heads: int) -> mx.array:
    """`[B, T, heads * D]`, or `[B, heads * D]` for one position -> `[B, heads, T, D]`."""
    if x.ndim == 2:
        return x.reshape(x.shape[0], heads, 1, -1)
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x: mx.array) -> mx.array:
    """`[B, heads, T, D]` -> `[B, T, heads * D]`."""
    batch, _, length, _ = x.shape
    return x.swapaxes(1, 2).reshape(batch, length, -1)


def make_rotation(cfg: TransformerConfig, start: mx.array, batch: int, length: int) -> Rotate | None:
    """Rotary embedding of `[batch, length]` positions from `start` (int32 `[]` or `[B]`); None where the stack has none.

    One operation rotates queries, keys and, by an angle of zero, values: it leaves keys and values side by side.
    """
    kind = cfg.positional_embedding
    if kind not in ("rope", "sin_rope", "rope_concat"):
        return None
    own = device.own_rotation(cfg, start, length)
    return own or _fast_rotation(cfg, start, batch, length, traditional=kind != "rope_concat")


def _fast_rotation(cfg: TransformerConfig, start: mx.array, batch: int, length: int, traditional: bool) -> Rotate:
    groups_turned = cfg.kv_repeat + 1
    offsets = mx.broadcast_to(start.reshape(-1, 1), (batch, groups_turned))
    if length == 1:
        # Values are at position 0, where the rotation is the identity.
        offsets = mx.concatenate([offsets, mx.broadcast_to(mx.array(0, mx.int32), (batch, 1))], axis=1)
    offsets = offsets.reshape(-1)
    # Where all rows begin alike, groups and heads can be one axis: of more axes, Metal copies what does not lie in a row.
    alike = batch == 1 and length > 1

    def rope(x: mx.array, offset: mx.array) -> mx.array:
        return mx.fast.rope(
            x, x.shape[-1], traditional=traditional, base=float(cfg.max_period), scale=1.0, offset=offset
        )

    def rotate(groups: mx.array) -> mx.array:
        if length == 1:
            return rope(groups.reshape(-1, *groups.shape[2:]), offsets).reshape(groups.shape)
        turned = groups[:, :-1]
        if alike:
            # Without an axis: MLX's kernels step through an offset of one element by its stride, head by head past its end.
            y = rope(turned.squeeze(0).reshape(-1, *turned.shape[3:]), start.reshape(()))
        else:
            y = rope(turned.reshape(-1, *turned.shape[2:]), offsets)
        return mx.concatenate([y.reshape(turned.shape), groups[:, -1:]], axis=1)

    return rotate


def sin_embedding(positions: mx.array, dim: int, max_period: float = 10000.0) -> mx.array:
    """`[..., dim]` float32, cosines first; the divisor is half - 1 (lm.md 4.2)."""
    half = dim // 2
    exponent = mx.arange(half, dtype=mx.float32) / (half - 1)
    phase = positions.astype(mx.float32)[..., None] / mx.power(mx.array(max_period, mx.float32), exponent)
    return mx.concatenate([mx.cos(phase), mx.sin(phase)], axis=-1)
