"""Causal convolutions on channels-last audio `[B, T, C]`, written as matrix products (mimi.md section 2).

A causal convolution needs its last `P = (k - 1) * dilation + 1 - stride` input columns from the call before, a transposed
one the overlap of its last output: these tails are the state, zero at the start of a stream. Matrix products are the
fast path of every MLX backend, and with one frame per call the windows are small.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..machine import device

State = dict[str, mx.array]


class CausalConv(nn.Module):
    """Weight `[k, in, out]`. `replicate`: at stream start the left context repeats the first column instead of zeros."""

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
    ):
        super().__init__()
        self._kernel, self._stride, self._dilation, self._replicate = kernel, stride, dilation, replicate
        self._left = (kernel - 1) * dilation + 1 - stride
        self.weight = mx.zeros((kernel, cin, cout))
        if bias:
            self.bias = mx.zeros((cout,))

    def init_state(self, batch: int) -> State:
        if self._left <= 0:
            return {}
        state = {"tail": mx.zeros((batch, self._left, self.weight.shape[1]))}
        if self._replicate:
            state["fresh"] = mx.ones((batch,), mx.bool_)
        return state

    def __call__(self, x: mx.array, state: State, execute: mx.array | None = None) -> tuple[mx.array, State]:
        """`x [B, T, in]`, T a positive multiple of the stride -> `[B, T / stride, out]` and the new state."""
        if state:
            tail = state["tail"]
            if self._replicate:
                tail = mx.where(state["fresh"][:, None, None], x[:, :1], tail)
            x = mx.concatenate([tail, x], axis=1)
            new = {"tail": x[:, -self._left :]}
            if self._replicate:
                new["fresh"] = mx.zeros_like(state["fresh"])
            state = keep_rows(new, state, execute)
        y = self._windows(x) @ self.weight.reshape(-1, self.weight.shape[2])
        return (y + self.bias if "bias" in self else y), state

    def _windows(self, x: mx.array) -> mx.array:
        """`[B, n, k * in]`, the inputs of each output column."""
        batch, length, channels = x.shape
        k, s, d = self._kernel, self._stride, self._dilation
        if k == 1:
            return x
        n = (length - (k - 1) * d - 1) // s + 1
        if d > 1:
            return mx.concatenate([x[:, j * d : j * d + n] for j in range(k)], axis=-1)
        # Neighbouring columns lie one after the other in memory: a window is a contiguous run.
        row = length * channels
        if batch == 1 and device.takes_overlapping_rows():
            # The first stride reaches nothing, but only with this one a product sees a plain matrix and copies nothing.
            row = n * s * channels
        return mx.as_strided(x, (batch, n, k * channels), (row, s * channels, 1))


class CausalConvTranspose(nn.Module):
    """Kernel `2 * stride`; weight `[in, 2 * stride, out]`. Emits `T * stride` columns, the overlap stays in the state."""

    def __init__(self, cin: int, cout: int, stride: int):
        super().__init__()
        self._stride = stride
        self.weight = mx.zeros((cin, 2 * stride, cout))
        self.bias = mx.zeros((cout,))

    def init_state(self, batch: int) -> State:
        return {"tail": mx.zeros((batch, 1, self._stride, self.weight.shape[2]))}

    def __call__(self, x: mx.array, state: State, execute: mx.array | None = None) -> tuple[mx.array, State]:
        batch, length, cin = x.shape
        y = (x @ self.weight.reshape(cin, -1)).reshape(batch, length, 2 * self._stride, -1)
        now, later = mx.split(y, 2, axis=2)
        y, state = _overlap_add(now, later, state, execute)
        return y + self.bias, state


class DepthwiseUpsample(nn.Module):
    """Channel-wise transposed convolution with kernel `2 * stride`; weight `[2 * stride, channels]`, no bias."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self._stride = stride
        self.weight = mx.zeros((2 * stride, channels))

    def init_state(self, batch: int) -> State:
        return {"tail": mx.zeros((batch, 1, self._stride, self.weight.shape[1]))}

    def __call__(self, x: mx.array, state: State, execute: mx.array | None = None) -> tuple[mx.array, State]:
        now, later = mx.split(x[:, :, None] * self.weight, 2, axis=2)
        return _overlap_add(now, later, state, execute)


def _overlap_add(now: mx.array, later: mx.array, state: State, execute: mx.array | None) -> tuple[mx.array, State]:
    """Halves `[B, T, stride, C]` of each column's output; the second half falls on the next column."""
    batch, length, stride, channels = now.shape
    previous = mx.concatenate([state["tail"], later[:, :-1]], axis=1) if length > 1 else state["tail"]
    new = keep_rows({"tail": later[:, -1:]}, state, execute)
    return (now + previous).reshape(batch, length * stride, channels), new


def keep_rows(new: State, old: State, execute: mx.array | None) -> State:
    """`new`, but rows that were not executed keep their `old` state."""
    if execute is None:
        return new
    return {name: mx.where(_rows(execute, a), a, old[name]) for name, a in new.items()}


def _rows(mask: mx.array, like: mx.array) -> mx.array:
    return mask.reshape(-1, *[1] * (like.ndim - 1))
