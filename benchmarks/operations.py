"""Which operations a graph is made of, counted as Metal would run them.

The CPU backend spells `mx.fast.*` and de-quantisation out in small operations; Metal runs each as one kernel. `as_metal` replaces them, while a
graph is built, by single operations that occur nowhere else, so that the graph has Metal's size; nothing of it is evaluated.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

# Operations that move no data: they relabel memory.
VIEWS = {
    "Reshape", "Transpose", "Squeeze", "ExpandDims", "Broadcast", "BroadcastAxes", "Split", "Slice", "Flatten", "Unflatten", "AsStrided",
    "View", "Depends", "StopGradient",
}  # fmt: skip
STAND_INS = {"CumSum": "RMSNorm", "CumProd": "LayerNorm", "Sort": "RoPE", "ArgSort": "Attention", "AddMM": "Dequantize"}


@contextmanager
def as_metal() -> Iterator[None]:
    """While active, graphs contain one stand-in per `mx.fast` operation and de-quantisation, and no code of the CPU backend's own."""
    saved = (
        mx.fast.rms_norm,
        mx.fast.layer_norm,
        mx.fast.rope,
        mx.fast.scaled_dot_product_attention,
        mx.dequantize,
        mx.default_device,
    )

    def scan(x, *dependencies, product=False):
        y = mx.cumprod(x, axis=-1) if product else mx.cumsum(x, axis=-1)
        return mx.depends([y], [d for d in dependencies if isinstance(d, mx.array)])[0]

    def attention(q, k, v, *, scale, mask=None, **_):
        y = mx.argsort(q, axis=-1).view(q.dtype)[..., : q.shape[-1]]
        return mx.depends([y], [k, v] + ([mask] if isinstance(mask, mx.array) else []))[0]

    def dequantize(w, scales, biases=None, group_size=None, bits=None, mode="affine", dtype=None, **_):
        shape = (*w.shape[:-1], w.shape[-1] * 32 // (bits or 4))
        kind = dtype or (mx.bfloat16 if scales.dtype == mx.uint8 else scales.dtype)
        zero = mx.array(0, kind)
        parts = (shape, (*shape[:-1], 1), (1, shape[-1]))
        return mx.depends([mx.addmm(*(mx.broadcast_to(zero, s) for s in parts))], [w, scales])[0]

    mx.fast.rms_norm = lambda x, weight, eps, **_: scan(x, weight)
    mx.fast.layer_norm = lambda x, weight, bias, eps, **_: scan(x, weight, bias, product=True)
    mx.fast.rope = lambda x, *_, offset, **__: (
        mx.depends([mx.sort(x, axis=-1)], [offset])[0] if isinstance(offset, mx.array) else mx.sort(x, axis=-1)
    )
    mx.fast.scaled_dot_product_attention = attention
    mx.dequantize = dequantize
    mx.default_device = lambda: mx.gpu
    try:
        yield
    finally:
        (
            mx.fast.rms_norm,
            mx.fast.layer_norm,
            mx.fast.rope,
            mx.fast.scaled_dot_product_attention,
            mx.dequantize,
            mx.default_device,
        ) = saved


def count(*outputs) -> Counter:
    """Operations by name in the graph of `outputs` (arrays or trees of arrays, not evaluated)."""
    from mlx.utils import tree_flatten

    arrays = [a for out in outputs for _, a in tree_flatten({"x": out})]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *arrays)
        text = path.read_text()
    names = re.findall(r'label ="([^"]+)", shape=rectangle', text)
    return Counter(names)
