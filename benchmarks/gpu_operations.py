"""Single operations of the package on the default device against NumPy in float64. For `gpu_checks.py`.

On a GPU in bfloat16, as models run there; on the CPU, which multiplies bfloat16 inexactly, in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from moshi_mlx.config.parts import TransformerConfig
from moshi_mlx.machine import device
from moshi_mlx.modules.attention import make_rotation
from moshi_mlx.modules.conv import CausalConv, CausalConvTranspose
from moshi_mlx.modules.kv_cache import attend, init_ring, make_span, ring_attend
from moshi_mlx.modules.matrix import Matrix
from moshi_mlx.modules.norm import make_norm
from moshi_mlx.modules.sampling import Sampler, _kth_largest, gumbel

KIND = mx.bfloat16 if device.on_gpu() else mx.float32
# Relative to the largest value: an output rounded to 8 bits, and sums of such.
ROUNDED = 2**-7 if device.on_gpu() else 2e-6
RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape)


def rounded(x: np.ndarray) -> tuple[mx.array, np.ndarray]:
    """As the device computes it, and what that holds in float64."""
    a = mx.array(x.astype(np.float32)).astype(KIND)
    return a, np.array(a.astype(mx.float32)).astype(np.float64)


def off(ours: mx.array, expected: np.ndarray) -> float:
    found = np.array(ours.astype(mx.float32)).astype(np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    assert np.isfinite(found).all()
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def worst(errors: dict[str, float], limit: float) -> dict[str, Any]:
    name = max(errors, key=lambda k: errors[k])
    assert errors[name] <= limit, f"{name}: off by {errors[name]:.2e} of the largest value, allowed {limit:.1e}"
    return {"worst": f"{errors[name]:.1e} ({name})", "allowed": f"{limit:.1e}", "cases": len(errors)}


def turned(x: np.ndarray, positions: np.ndarray, period: float, halves: bool) -> np.ndarray:
    """`x [B, G, H, T, D]` rotated by `positions [B, T]`."""
    half = x.shape[-1] // 2
    angle = positions[:, None, None, :, None] * period ** (-np.arange(half) / half)
    a, b = (x[..., :half], x[..., half:]) if halves else (x[..., ::2], x[..., 1::2])
    parts = a * np.cos(angle) - b * np.sin(angle), a * np.sin(angle) + b * np.cos(angle)
    return np.concatenate(parts, -1) if halves else np.stack(parts, -1).reshape(x.shape)


def rotation() -> dict[str, Any]:
    """One clock and a clock per row, one position and several, both kinds of pairs."""
    errors = {}
    for kind, batch, length, own, size in product(
        ("rope", "rope_concat"), (1, 3), (1, 2, 5), (False, True), (32, 64, 128)
    ):
        cfg = TransformerConfig(2 * size, num_heads=2, num_layers=1, dim_feedforward=64, positional_embedding=kind)
        first = np.array([7, 1500, 2999])[:batch] if own else np.array(2999)
        x, wide = rounded(draw(batch, 3, 2, length, size))
        rotate = make_rotation(cfg, mx.array(first.astype(np.int32)), batch, length)
        positions = np.broadcast_to(np.reshape(first, (-1, 1)) + np.arange(length), (batch, length))
        expected = turned(wide, positions, 10000, kind == "rope_concat")
        expected[:, 2] = wide[:, 2]
        errors[f"{kind} batch {batch} length {length} own {own} head {size}"] = off(rotate(x), expected)
    # Angles are float32: at position 2999 they are right to 2e-4.
    return worst(errors, ROUNDED + 2e-4)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference_attention(q: np.ndarray, kv: np.ndarray, mask: np.ndarray) -> np.ndarray:
    k, v = (np.repeat(a, q.shape[1] // a.shape[1], axis=1) for a in kv)
    scores = np.where(mask, q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5, -np.inf)
    return softmax(scores) @ v


def attention() -> dict[str, Any]:
    """Masks of rings that have wrapped and of rings hardly begun, one query and several, grouped heads, every head size in use."""
    errors = {}
    for size, batch, length, repeat, start in product((32, 64, 128), (1, 2), (1, 2, 7), (1, 2), (0, 5, 40, 700)):
        span = make_span(mx.array(start, mx.int32), length, 64, 60, stride=length)
        q, wide_q = rounded(draw(batch, 2 * repeat, length, size))
        kv, wide_kv = rounded(draw(2, batch, 2, span.mask.shape[-1], size))
        expected = reference_attention(wide_q, wide_kv, np.array(span.mask))
        errors[f"head {size} batch {batch} queries {length} repeat {repeat} at {start}"] = off(
            attend(q, kv, span.mask), expected
        )
    return worst(errors, 2 * ROUNDED)


def packed_attention() -> dict[str, Any]:
    """Rings of 8 and 4 bits against the values they hold, after 70 writes."""
    errors = {}
    for bits, size, batch in product((8, 4), (64, 128), (1, 2)):
        ring: Any = init_ring(batch, 2, 64, size, KIND, bits)
        for t in range(70):
            span = make_span(mx.array(t, mx.int32), 1, 64, 64)
            q, wide_q = rounded(draw(batch, 4, 1, size))
            y, ring = ring_attend(q, rounded(draw(2, batch, 2, 1, size))[0], ring, span)
            mx.eval(y, ring)
        group = size // ring["scales"].shape[-1]
        parts = [ring[n] if n == "packed" else ring[n].astype(mx.float32) for n in ("packed", "scales", "biases")]
        held = np.array(mx.dequantize(*parts, group, bits).astype(mx.float32)).astype(np.float64)
        errors[f"{bits} bits head {size} batch {batch}"] = off(
            y, reference_attention(wide_q, held, np.array(span.mask))
        )
    # Scores and weights pass through memory, rounded.
    return worst(errors, 4 * ROUNDED)


def packed_products() -> dict[str, Any]:
    errors = {}
    kinds = {"q4": (32, 4, "affine"), "q8": (64, 8, "affine"), "mxfp4": (32, 4, "mxfp4"), "nvfp4": (16, 4, "nvfp4")}
    for name, rows, columns in product(kinds, (1, 2, 8, 33), (512, 4096)):
        group, bits, mode = kinds[name]
        layer = nn.QuantizedLinear(columns, 640, bias=False, group_size=group, bits=bits, mode=mode)
        layer.set_dtype(KIND)
        matrix = Matrix.of(layer)
        x, wide = rounded(draw(rows, columns))
        held = np.array(matrix.rows(mx.arange(640), mx.float32)).astype(np.float64)
        errors[f"{name} {rows} x {columns}"] = off(matrix.product(x), wide @ held.T)
    return worst(errors, 2 * ROUNDED)


def norms() -> dict[str, Any]:
    errors = {}
    for kind, rows, width in product(("rms_norm_f32", "layer_norm"), (1, 3), (256, 4096)):
        norm = make_norm(kind, width)
        norm.weight = rounded(1 + 0.1 * draw(width))[0]
        x, wide = rounded(draw(rows, width))
        centred = wide - wide.mean(-1, keepdims=True) if kind == "layer_norm" else wide
        expected = (
            centred
            / np.sqrt((centred**2).mean(-1, keepdims=True) + norm.eps)
            * np.array(norm.weight.astype(mx.float32))
        )
        errors[f"{kind} {rows} x {width}"] = off(norm(x), expected)
    return worst(errors, ROUNDED)


def convolutions() -> dict[str, Any]:
    """Windows that overlap in memory, in float32: every kernel, stride and dilation of the codec, frame by frame and at once."""
    errors = {}
    shapes = ((7, 1, 1), (3, 1, 1), (8, 4, 1), (10, 5, 1), (12, 6, 1), (16, 8, 1), (4, 2, 1), (3, 1, 2))
    for (kernel, stride, dilation), batch, replicate in product(shapes, (1, 2), (False, True)):
        conv = CausalConv(12, 20, kernel, stride, dilation, replicate=replicate)
        weight, bias = draw(kernel, 12, 20).astype(np.float32), draw(20).astype(np.float32)
        conv.weight, conv.bias = mx.array(weight), mx.array(bias)
        x = draw(batch, 8 * stride, 12).astype(np.float32)
        left = (kernel - 1) * dilation + 1 - stride
        lead = np.repeat(x[:, :1], left, 1) if replicate else np.zeros((batch, left, 12))
        padded = np.concatenate([lead, x], 1)
        expected = bias + sum(
            padded[:, j * dilation : j * dilation + 7 * stride + 1 : stride] @ weight[j].astype(np.float64)
            for j in range(kernel)
        )
        whole, _ = conv(mx.array(x), conv.init_state(batch))
        state, parts = conv.init_state(batch), []
        for t in range(4):
            y, state = conv(mx.array(x[:, 2 * t * stride : 2 * (t + 1) * stride]), state)
            parts.append(y)
        name = f"kernel {kernel} stride {stride} dilation {dilation} batch {batch}"
        errors[name] = max(off(whole, expected), off(mx.concatenate(parts, axis=1), expected))
    for stride, batch in product((4, 5, 6, 8), (1, 2)):
        up = CausalConvTranspose(12, 20, stride)
        weight = draw(12, 2 * stride, 20).astype(np.float32)
        up.weight, up.bias = mx.array(weight), mx.zeros(20)
        x = draw(batch, 6, 12).astype(np.float32)
        y = np.einsum("bti,iko->btko", x.astype(np.float64), weight)
        expected = y[:, :, :stride].copy()
        expected[:, 1:] += y[:, :-1, stride:]
        errors[f"up {stride} batch {batch}"] = off(
            up(mx.array(x), up.init_state(batch))[0], expected.reshape(batch, -1, 20)
        )
    return worst(errors, 1e-5)


def sampling() -> dict[str, Any]:
    """The k-th largest of long and short rows, top-p's threshold, and noise that is the same in any batch."""
    wrong = []
    for size, k, rows in product((2048, 32000, 48000), (25, 250), (1, 3)):
        logits = draw(rows, size).astype(np.float32)
        expected = np.sort(logits, -1)[:, -k][:, None]
        if not (np.array(_kth_largest(mx.array(logits), k)) == expected).all():
            wrong.append(f"{k} of {size}")
        sampler = Sampler(temp=1.0, top_k=None, top_p=0.9)
        kept = np.isfinite(np.array(sampler.kept(mx.array(logits))))
        p = -np.sort(-softmax(logits.astype(np.float64)), -1)
        count = (np.cumsum(p, -1) - p <= 0.9).sum(-1)
        if np.abs(kept.sum(-1) - count).max() > 1:
            wrong.append(f"top-p of {size}")
    seeds, step = mx.array([3, 4, 5], mx.uint32), mx.array(9, mx.int32)
    together = np.array(gumbel(seeds, step, 100))
    alone = np.concatenate([np.array(gumbel(seeds[i : i + 1], step, 100)) for i in range(3)])
    if not (together == alone).all():
        wrong.append("noise of a batch")
    assert not wrong, wrong
    return {"wrong": 0}


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    "rotation": rotation,
    "attention": attention,
    "packed keys": packed_attention,
    "packed products": packed_products,
    "norms": norms,
    "convolutions, float32": convolutions,
    "sampling": sampling,
}
