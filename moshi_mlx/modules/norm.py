"""Normalisation layers by their configuration name (lm.md 4.1). All of them reduce in float32."""

from __future__ import annotations

import mlx.nn as nn

_EPS = {"layer_norm": 1e-5, "layer_norm_f32": 1e-8, "rms_norm": 1e-5, "rms_norm_f32": 1e-8}


def make_norm(kind: str, dim: int) -> nn.Module:
    """`kind` is one of `config.NORMS`; `mx.fast` computes mean and variance in float32 whatever the input type."""
    if kind.startswith("layer_norm"):
        return nn.LayerNorm(dim, eps=_EPS[kind])
    return nn.RMSNorm(dim, eps=_EPS[kind])
