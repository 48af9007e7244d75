"""Pre-norm transformer stack (lm.md section 4). Serves Helium, the depth transformer's slices and Mimi.

State of a stack: `{"position": int32 [] or [B], "layers": [ring, ...]}`, see `kv_cache`.
"""

from __future__ import annotations

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..config import parts
from ..lazy import hand_on
from .attention import Attend, Attention, CrossAttention, Rotate, make_rotation, sin_embedding
from .kv_cache import Ring, attend, causal_mask, init_ring, make_span, map_ring, ring_attend, ring_capacity, slots_of
from .mlp import make_mlp
from .norm import make_norm

# The published package has it here.
__getattr__ = hand_on(__name__, __package__, {"TransformerConfig": "..compat.configurations"})


class LayerScale(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.scale = mx.ones(dim)

    def __call__(self, x: mx.array) -> mx.array:
        return x * self.scale


class TransformerLayer(nn.Module):
    def __init__(self, cfg: parts.TransformerConfig):
        super().__init__()
        self.norm1 = make_norm(cfg.norm, cfg.d_model)
        self.self_attn = Attention(cfg)
        self.norm2 = make_norm(cfg.norm, cfg.d_model)
        self.gating = make_mlp(cfg)
        self._cross, self._scaled = cfg.cross_attention, cfg.layer_scale is not None
        if self._cross:
            self.norm_cross = nn.LayerNorm(cfg.d_model, eps=1e-5)
            self.cross_attention = CrossAttention(cfg)
        if self._scaled:
            self.layer_scale_1 = LayerScale(cfg.d_model)
            self.layer_scale_2 = LayerScale(cfg.d_model)
            if self._cross:
                self.layer_scale_cross = LayerScale(cfg.d_model)

    def __call__(
        self,
        x: mx.array,
        attend_fn: Attend,
        rotate: Rotate | None = None,
        cross: mx.array | None = None,
        cross_mask: mx.array | None = None,
    ) -> tuple[mx.array, Ring]:
        """`x [B, T, d]` or `[B, d]`; `cross` holds the keys and values of the source. Returns the output and the attention's cache."""
        y, cache = self.self_attn(self.norm1(x), attend_fn, rotate)
        x = x + (self.layer_scale_1(y) if self._scaled else y)
        if self._cross and cross is not None:
            y = self.cross_attention(self.norm_cross(x), cross, cross_mask)
            x = x + (self.layer_scale_cross(y) if self._scaled else y)
        y = self.gating(self.norm2(x))
        return x + (self.layer_scale_2(y) if self._scaled else y), cache


class Transformer(nn.Module):
    """`stride` is the number of positions of an ordinary step (2 for Mimi, whose frames are two latent steps)."""

    def __init__(self, cfg: parts.TransformerConfig, stride: int = 1):
        super().__init__()
        self._cfg, self._stride = cfg, stride
        self.layers = [TransformerLayer(cfg) for _ in range(cfg.num_layers)]

    def capacity(self) -> int | None:
        """Slots of a full ring; None when the window is unbounded."""
        context = self._cfg.context
        return None if context is None else ring_capacity(context, self._stride)

    def init_state(
        self, batch: int, capacity: int, dtype: mx.Dtype, lockstep: bool = True, kv_bits: int | None = None
    ) -> dict:
        """An empty state of `capacity` slots. `lockstep`: all rows share one clock. `kv_bits`: store keys and values packed."""
        cfg = self._cfg
        shape = (batch, cfg.kv_heads, capacity, cfg.head_dim)
        return {
            "position": mx.zeros([] if lockstep else [batch], mx.int32),
            "layers": [init_ring(*shape, dtype, kv_bits) for _ in self.layers],
        }

    def __call__(
        self,
        x: mx.array,
        state: dict,
        cross: list[mx.array] | None = None,
        execute: mx.array | None = None,
        cross_mask: mx.array | None = None,
    ) -> tuple[mx.array, dict]:
        """`x [B, T, d]` at the positions that follow `state`; any T gives what T single steps give.

        `execute` bool `[B]` (states with a clock per row only): rows where it is false leave no trace.
        """
        cfg, start, length = self._cfg, state["position"], x.shape[1]
        if not self.layers:
            return x, state
        capacity = capacity_of(state)
        span = make_span(start, length, capacity, cfg.context, self._stride, execute)
        x = self._add_positions(x, start)
        rotate = make_rotation(cfg, start, *x.shape[:2])
        # One position is a plain vector per row: matrices of one row cost reshapes at every product.
        single = length == 1
        x = x.reshape(x.shape[0], -1) if single else x
        rings = []
        for i, layer in enumerate(self.layers):
            attend_fn = partial(ring_attend, ring=state["layers"][i], span=span)
            x, ring = layer(x, attend_fn, rotate, cross[i] if cross else None, cross_mask)
            rings.append(ring)
        step = length if execute is None else length * execute.astype(mx.int32)
        x = x[:, None] if single else x
        return x, {"position": start + step, "layers": rings}

    def forward(self, x: mx.array, cross: list[mx.array] | None = None) -> mx.array:
        """A whole sequence `[B, T, d]` from position 0, without state."""
        start = mx.array(0, mx.int32)
        mask = causal_mask(x.shape[1], self._cfg.context)
        x = self._add_positions(x, start)
        rotate = make_rotation(self._cfg, start, *x.shape[:2])
        for i, layer in enumerate(self.layers):
            x, _ = layer(x, lambda q, kv: (attend(q, kv, mask), kv), rotate, cross[i] if cross else None)
        return x

    def cross_keys_values(self, source: mx.array) -> list[mx.array]:
        """Per layer, keys and values `[2, B, H, S, D]` of a cross-attention source `[B, S, d]`."""
        return [layer.cross_attention.keys_values(source) for layer in self.layers]

    def _add_positions(self, x: mx.array, start: mx.array) -> mx.array:
        cfg = self._cfg
        if cfg.positional_embedding not in ("sin", "sin_rope"):
            return x
        first = start if start.ndim == 0 else start[:, None]
        emb = sin_embedding(first + mx.arange(x.shape[1]), cfg.d_model, cfg.max_period)
        return x + emb.astype(x.dtype)


def capacity_of(state: dict) -> int:
    """Slots of the rings of a stack's state."""
    return slots_of(state["layers"][0])


def grow(state: dict, capacity: int) -> dict:
    """The state with rings of `capacity` slots, at least as many as they have. Only before the old rings have wrapped."""
    more = capacity - capacity_of(state)
    if not more:
        return state

    def pad(a: mx.array) -> mx.array:
        return mx.pad(a, [(0, 0)] * 3 + [(0, more), (0, 0)])

    return {**state, "layers": [map_ring(pad, ring) for ring in state["layers"]]}
