"""Self-attention, cross-attention and positional embeddings (lm.md 4.2 and 4.4). Weights only; state is passed in."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..config import TransformerConfig
from .kv_cache import attend

# (q, k, v) -> (output, new cache), all [B, H, T, D]
Attend = Callable[[mx.array, mx.array, mx.array], tuple[mx.array, object]]
# [B, H, T, D] -> the same, rotated
Rotate = Callable[[mx.array], mx.array]


class Attention(nn.Module):
    """Packed rows of `in_proj`: queries, then keys, then values, heads contiguous within each."""

    def __init__(self, cfg: TransformerConfig):
        super().__init__()
        self._heads, self._kv_heads = cfg.num_heads, cfg.kv_heads
        self.in_proj = nn.Linear(cfg.d_model, (cfg.num_heads + 2 * cfg.kv_heads) * cfg.head_dim, bias=False)
        self.out_proj = nn.Linear(cfg.d_model, cfg.d_model, bias=False)

    def __call__(self, x: mx.array, attend_fn: Attend, rotate: Rotate | None = None) -> tuple[mx.array, object]:
        """`x [B, T, d]`; `attend_fn` sees rotated queries and keys and decides what they attend to."""
        qkv = split_heads(self.in_proj(x), self._heads + 2 * self._kv_heads)
        # Queries and keys are neighbours, so one rotation serves both.
        qk, v = mx.split(qkv, [self._heads + self._kv_heads], axis=1)
        if rotate is not None:
            qk = rotate(qk)
        q, k = mx.split(qk, [self._heads], axis=1)
        y, cache = attend_fn(q, k, v)
        return self.out_proj(merge_heads(y)), cache


class CrossAttention(nn.Module):
    """Attention to a fixed source: no positions, no mask, all heads their own keys and values (lm.md 4.4)."""

    def __init__(self, cfg: TransformerConfig):
        super().__init__()
        self._heads = cfg.num_heads
        self.in_proj = nn.Linear(cfg.d_model, 3 * cfg.d_model, bias=False)
        self.out_proj = nn.Linear(cfg.d_model, cfg.d_model, bias=False)

    def keys_values(self, source: mx.array) -> tuple[mx.array, mx.array]:
        """Keys and values of `source [B, S, d]`, computed once per conversation."""
        _, k, v = mx.split(split_heads(self.in_proj(source), 3 * self._heads), 3, axis=1)
        return k, v

    def __call__(self, x: mx.array, keys_values: tuple[mx.array, mx.array]) -> mx.array:
        q = split_heads(self._queries(x), self._heads)
        return self.out_proj(merge_heads(attend(q, *keys_values)))

    def _queries(self, x: mx.array) -> mx.array:
        """The query rows alone: two thirds of the packed product would be thrown away."""
        p, d = self.in_proj, x.shape[-1]
        if isinstance(p, nn.QuantizedLinear):
            biases = p.get("biases")
            return mx.quantized_matmul(
                x, p.weight[:d], p.scales[:d], None if biases is None else biases[:d],
                transpose=True, group_size=p.group_size, bits=p.bits, mode=p.mode,
            )  # fmt: skip
        return x @ p.weight[:d].T


def split_heads(x: mx.array, heads: int) -> mx.array:
    """`[B, T, heads * D]` -> `[B, heads, T, D]`; a single step needs no transposition."""
    batch, length, _ = x.shape
    if length == 1:
        return x.reshape(batch, heads, 1, -1)
    return x.reshape(batch, length, heads, -1).swapaxes(1, 2)


def merge_heads(x: mx.array) -> mx.array:
    batch, _, length, _ = x.shape
    if length == 1:
        return x.reshape(batch, 1, -1)
    return x.swapaxes(1, 2).reshape(batch, length, -1)


def make_rotation(cfg: TransformerConfig, start: mx.array) -> Rotate | None:
    """Rotary embedding of positions `start, start + 1, ...` (`start` int32 `[]` or `[B]`); None where the stack has none."""
    kind = cfg.positional_embedding
    if kind not in ("rope", "sin_rope", "rope_concat"):
        return None

    def rotate(x: mx.array) -> mx.array:
        # The CPU backend computes the angles in the type of x, and bfloat16 positions are useless; Metal uses float32.
        wide = x.astype(mx.float32) if mx.default_device() == mx.cpu else x
        y = mx.fast.rope(
            wide, x.shape[-1], traditional=kind != "rope_concat", base=float(cfg.max_period), scale=1.0, offset=start
        )
        return y.astype(x.dtype)

    return rotate


def sin_embedding(positions: mx.array, dim: int, max_period: float = 10000.0) -> mx.array:
    """`[..., dim]` float32, cosines first; the divisor is half - 1 (lm.md 4.2)."""
    half = dim // 2
    exponent = mx.arange(half, dtype=mx.float32) / (half - 1)
    phase = positions.astype(mx.float32)[..., None] / mx.power(mx.array(max_period, mx.float32), exponent)
    return mx.concatenate([mx.cos(phase), mx.sin(phase)], axis=-1)
