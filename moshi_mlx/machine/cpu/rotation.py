"""Rotary embedding by complex products: a fraction of what MLX's CPU backend takes for its own, and angles in float32 for every type."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx

from ...config.parts import TransformerConfig


def make_rotation(cfg: TransformerConfig, start: mx.array, length: int) -> Callable[[mx.array], mx.array]:
    """Of positions `start .. start + length - 1` (`start` int32 `[]` or `[B]`): groups `[B, G, H, T, D]` -> the same, the last, values, as they were.

    A pair of features is a complex number: neighbours, or with `rope_concat` one of each half.
    """
    half = cfg.head_dim // 2
    frequency = mx.exp(mx.arange(half, dtype=mx.float32) * (-math.log(cfg.max_period) / half))
    angle = (start.reshape(-1, 1) + mx.arange(length)).astype(mx.float32)[..., None] * frequency
    turn = (mx.cos(angle) + mx.array(1j) * mx.sin(angle))[:, None, None]
    turns = mx.concatenate([turn] * (cfg.kv_repeat + 1) + [mx.ones_like(turn)], axis=1)

    def rotate(groups: mx.array) -> mx.array:
        pairs = groups.astype(mx.float32).view(mx.complex64)
        return (pairs * turns).view(mx.float32).astype(groups.dtype)

    def rotate_halves(groups: mx.array) -> mx.array:
        halves = groups.reshape(*groups.shape[:-1], 2, half).swapaxes(-1, -2)
        # The new shape puts the pairs side by side in memory (and, unlike `mx.contiguous`, can be exported).
        turned = rotate(halves.reshape(groups.shape))
        return turned.reshape(*groups.shape[:-1], half, 2).swapaxes(-1, -2).reshape(groups.shape)

    return rotate_halves if cfg.positional_embedding == "rope_concat" else rotate
