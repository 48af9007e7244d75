"""How far the predictions of two models are apart, per stream: divergence and agreement of the most probable token."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Stream:
    """One stream's comparison: `kl` in nats per token (source against result), `top1` the share of equal first choices."""

    name: str
    kl: float
    top1: float


def compare(source: tuple[mx.array, mx.array | None], result: tuple[mx.array, mx.array | None]) -> list[Stream]:
    """Text and every codebook; logits as `verify.logits` gives them."""
    streams = [_stream("text", source[0], result[0])]
    if source[1] is not None and result[1] is not None:
        for k in range(source[1].shape[1]):
            streams.append(_stream(f"codebook {k}", source[1][:, k], result[1][:, k]))
    return streams


def _stream(name: str, a: mx.array, b: mx.array) -> Stream:
    top1 = mx.mean((mx.argmax(a, axis=-1) == mx.argmax(b, axis=-1)).astype(mx.float32))
    return Stream(name, divergence(a, b).item(), top1.item())


def divergence(a: mx.array, b: mx.array) -> mx.array:
    """Mean Kullback-Leibler divergence of softmax(b) from softmax(a) over the last axis, float32."""
    p = _log_softmax(a)
    return mx.mean(mx.sum(mx.exp(p) * (p - _log_softmax(b)), axis=-1))


def _log_softmax(x: mx.array) -> mx.array:
    x = x.astype(mx.float32)
    return x - mx.logsumexp(x, axis=-1, keepdims=True)


def loss(source: tuple[mx.array, mx.array | None], result: tuple[mx.array, mx.array | None]) -> float:
    """One number: the divergence of a whole frame's tokens, the sum over its streams."""
    total = divergence(source[0], result[0])
    if source[1] is not None and result[1] is not None:
        total = total + source[1].shape[1] * divergence(source[1], result[1])
    return total.item()
