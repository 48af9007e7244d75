"""A model run with some of its layers rounded: what a packing costs, before anything is written.

Models that fit are held in memory. Others are streamed: a layer is read when it is called and let go of when it has answered, so
that a forward pass over many frames takes the memory of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from moshi_mlx.convert.jobs import kept_type
from moshi_mlx.convert.language_model import LanguageModel
from moshi_mlx.convert.verify import logits

from moshi_mlx import loading, memory
from moshi_mlx.layouts.expr import Expr
from moshi_mlx.loading import Quantization
from moshi_mlx.models.lm import Lm

# Room for activations and logits beside the weights.
ACTIVATION_BYTES = 1_000_000_000


def rounded(weight: mx.array, q: Quantization) -> mx.array:
    """What is left of a weight when it has been packed; the type of `weight` is that of the scales."""
    parts = mx.quantize(weight, q.group_size, q.bits, mode=q.mode)
    wide = [p if p.dtype in (mx.uint32, mx.uint8) else p.astype(mx.float32) for p in parts]
    biases = wide[2] if len(wide) > 2 else None
    return mx.dequantize(wide[0], wide[1], biases, q.group_size, q.bits, q.mode).astype(mx.float32)


class Trial:
    """Logits of given codes with layers rounded as a packing says. Computes in float32."""

    def __init__(self, model: LanguageModel, codes: mx.array):
        self.codes = codes
        self._plan, self._tensors = model.dense_plan(), model.tensors
        self._kinds = {
            name: kept_type(expr.kind(lambda s: model.tensors[s].dtype)) for name, expr in self._plan.items()
        }
        self._lm = Lm(model.config.lm)
        values = sum(4 * _count(shape) for shape in model.parameters.values())
        crosses = model.config.lm.transformer.cross_attention
        self.streamed = not crosses and values + ACTIVATION_BYTES > memory.available_bytes() // 2
        self._packing: Mapping[str, Quantization] = {}
        if self.streamed:
            self._stream()
        else:
            loading.fill(self._lm, self._plan, self._tensors, lambda name, stored: mx.float32)
        self._lm.set_compute_dtype(mx.float32)

    def logits(self, packing: Mapping[str, Quantization] | None = None) -> tuple[mx.array, mx.array | None]:
        """Text and codebook logits (see `verify.logits`)."""
        with self._rounding(packing or {}):
            return logits(self._lm, self.codes)

    @contextmanager
    def _rounding(self, packing: Mapping[str, Quantization]) -> Iterator[None]:
        self._packing = packing
        if self.streamed:
            self._fill_resident()
            yield
            return
        modules = dict(self._lm.named_modules())
        before = {path: modules[path].weight for path in packing}
        done: dict[tuple[int, Quantization], mx.array] = {}
        try:
            for path, q in packing.items():
                key = (id(before[path]), q)
                if key not in done:
                    done[key] = rounded(before[path].astype(self._kinds[f"{path}.weight"]), q)
                modules[path].weight = done[key]
            yield
        finally:
            for path, weight in before.items():
                modules[path].weight = weight

    # Streaming ------------------------------------------------------------------------------------------------

    def _stream(self) -> None:
        """Put a `Streamed` in place of every transformer layer."""
        stacks = [("transformer", self._lm.transformer)]
        stacks += [
            (f"depformer.slices.{k}.transformer", s.transformer) for k, s in enumerate(self._lm.depformer.slices)
        ]
        self._inside: set[str] = set()
        for prefix, stack in stacks:
            for i, layer in enumerate(stack.layers):
                path = f"{prefix}.layers.{i}."
                local = {n.removeprefix(path): e for n, e in self._plan.items() if n.startswith(path)}
                self._inside.update(path + n for n in local)
                stack.layers[i] = Streamed(layer, _Filler(self, path, local))
        self._resident: Mapping[str, Quantization] | None = None

    def _fill_resident(self) -> None:
        """Everything outside the layers, in the type it is stored in, rounded where the packing asks for it."""
        outside = {n: e for n, e in self._plan.items() if n not in self._inside}
        wanted = {path: q for path, q in self._packing.items() if f"{path}.weight" in outside}
        if wanted == self._resident:
            return
        plan = {n: self._rounded_expr(n, e) for n, e in outside.items()}
        loading.fill(self._lm, plan, self._tensors, lambda name, stored: stored, strict=False)
        self._resident = wanted

    def _rounded_expr(self, name: str, expr: Expr) -> Expr:
        path, _, leaf = name.rpartition(".")
        q = self._packing.get(path) if leaf == "weight" else None
        return expr if q is None else Rounded(expr, q, self._kinds[name])


class _Filler:
    """Reads the parameters of one layer into it."""

    def __init__(self, trial: Trial, path: str, plan: dict[str, Expr]):
        self.trial, self.path, self.plan = trial, path, plan

    def __call__(self, layer: nn.Module) -> None:
        plan = {n: self.trial._rounded_expr(self.path + n, e) for n, e in self.plan.items()}
        loading.fill(layer, plan, self.trial._tensors, lambda name, stored: mx.float32)


class Streamed(nn.Module):
    """A layer whose weights are there while it is called."""

    def __init__(self, layer: nn.Module, fill: Callable[[nn.Module], None]):
        super().__init__()
        # Not a child: its weights are nobody's parameters.
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_fill", fill)
        object.__setattr__(self, "_empty", layer.parameters())

    def __call__(self, *args: Any) -> Any:
        self._fill(self._layer)
        out = self._layer(*args)
        mx.eval(out)
        self._layer.update(self._empty)
        mx.clear_cache()
        return out


@dataclass(frozen=True)
class Rounded(Expr):
    """A weight packed and taken apart again."""

    of: Expr
    q: Quantization
    type: mx.Dtype

    def sources(self):
        return self.of.sources()

    def shape(self, shapes):
        return self.of.shape(shapes)

    def build(self, get):
        return rounded(self.of.build(get).astype(self.type), self.q)


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for s in shape:
        n *= s
    return n
