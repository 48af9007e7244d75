"""SEANet encoder and decoder (mimi.md section 3): stacks of causal convolutions with residual blocks.

`model` lists the layers with the indices of the published file, which counts activations too.
State: one conv state per layer of `model`, in order.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config.parts import SeanetConfig
from .conv import CausalConv, CausalConvTranspose


def elu(x: mx.array) -> mx.array:
    """`x` above zero, `exp(x) - 1` below: by `expm1`, which keeps the digits of small values (and is the faster on a CPU)."""
    return mx.where(x > 0, x, mx.expm1(mx.minimum(x, 0)))


class Elu(nn.Module):
    """Holds the index of an activation in `model`."""

    def init_state(self, batch: int) -> dict:
        return {}

    def __call__(self, x: mx.array, state: dict, execute: mx.array | None = None) -> tuple[mx.array, dict]:
        return elu(x), state


class ResidualBlock(nn.Module):
    """`x + conv1x1(elu(conv(elu(x))))`; the skip is the identity, or a 1x1 convolution where `true_skip` is false."""

    def __init__(self, cfg: SeanetConfig, channels: int, index: int):
        super().__init__()
        hidden = channels // cfg.compress
        replicate = cfg.pad_mode == "replicate"
        dilation = cfg.dilation_base**index
        self.conv1 = CausalConv(channels, hidden, cfg.residual_kernel_size, dilation=dilation, replicate=replicate)
        self.conv2 = CausalConv(hidden, channels, 1)
        if not cfg.true_skip:
            self.shortcut = CausalConv(channels, channels, 1)

    def init_state(self, batch: int) -> dict:
        return self.conv1.init_state(batch)

    def __call__(self, x: mx.array, state: dict, execute: mx.array | None = None) -> tuple[mx.array, dict]:
        y, state = self.conv1(elu(x), state, execute)
        y, _ = self.conv2(elu(y), {})
        if "shortcut" in self:
            x, _ = self.shortcut(x, {})
        return x + y, state


class _Stack(nn.Module):
    model: list

    def init_state(self, batch: int) -> list[dict]:
        return [layer.init_state(batch) for layer in self.model]

    def __call__(self, x: mx.array, state: list[dict], execute: mx.array | None = None) -> tuple[mx.array, list[dict]]:
        new = []
        for layer, s in zip(self.model, state, strict=True):
            x, s = layer(x, s, execute)
            new.append(s)
        return x, new


class SeanetEncoder(_Stack):
    """`[B, T, 1]` -> `[B, T / hop, dimension]`; the ratios are walked from the last to the first."""

    def __init__(self, cfg: SeanetConfig):
        super().__init__()
        replicate = cfg.pad_mode == "replicate"
        channels = cfg.n_filters
        layers: list[nn.Module] = [CausalConv(cfg.channels, channels, cfg.kernel_size, replicate=replicate)]
        for ratio in reversed(cfg.ratios):
            layers += [ResidualBlock(cfg, channels, j) for j in range(cfg.n_residual_layers)]
            layers += [Elu(), CausalConv(channels, 2 * channels, 2 * ratio, stride=ratio, replicate=replicate)]
            channels *= 2
        self.model = [*layers, Elu(), CausalConv(channels, cfg.dimension, cfg.last_kernel_size, replicate=replicate)]


class SeanetDecoder(_Stack):
    """`[B, N, dimension]` -> `[B, N * hop, 1]`. No clipping."""

    def __init__(self, cfg: SeanetConfig):
        super().__init__()
        replicate = cfg.pad_mode == "replicate"
        channels = cfg.n_filters * 2 ** len(cfg.ratios)
        layers: list[nn.Module] = [CausalConv(cfg.dimension, channels, cfg.kernel_size, replicate=replicate)]
        for ratio in cfg.ratios:
            layers += [Elu(), CausalConvTranspose(channels, channels // 2, ratio)]
            channels //= 2
            layers += [ResidualBlock(cfg, channels, j) for j in range(cfg.n_residual_layers)]
        self.model = [*layers, Elu(), CausalConv(channels, cfg.channels, cfg.last_kernel_size, replicate=replicate)]
