"""Feed-forward blocks (lm.md 4.3)."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from ..config.parts import TransformerConfig
from .matrix import split_columns

ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "silu": nn.silu,
    "gelu": nn.gelu,
    "relu": nn.relu,
    "sigmoid": mx.sigmoid,
    "tanh": mx.tanh,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "mish": nn.mish,
    "softsign": nn.softsign,
    "identity": lambda x: x,
}


class GatedMlp(nn.Module):
    """`W_out (act(a) * b)` with `[a, b] = W_in x`."""

    def __init__(self, dim: int, hidden: int, activation: str):
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)
        self._activation = ACTIVATIONS[activation]

    def __call__(self, x: mx.array) -> mx.array:
        a, b = split_columns(self.linear_in(x), 2)
        return self.linear_out(self._activation(a) * b)


class PlainMlp(nn.Module):
    """`W2 gelu(W1 x)` with the exact (erf) GELU: the tanh form changes the codec's codes (mimi.md section 4)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.linear2(nn.gelu(self.linear1(x)))


def make_mlp(cfg: TransformerConfig) -> nn.Module:
    if cfg.gating == "none":
        return PlainMlp(cfg.d_model, cfg.hidden)
    return GatedMlp(cfg.d_model, cfg.hidden, cfg.gating)
