"""A model run with some of its layers rounded: what a packing costs, before anything is written.

Models that fit are held in memory. Others are streamed: a layer is read when it is called and let go of when it has answered, so
that a forward pass over many frames takes the memory of one layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from moshi_mlx.convert.language_model import LanguageModel
from moshi_mlx.convert.verify import logits

from moshi_mlx.checkpoint import fill
from moshi_mlx.checkpoint.layouts.expr import Expr
from moshi_mlx.checkpoint.packing import Quantization, kept_type, pack
from moshi_mlx.machine import memory
from moshi_mlx.models.lm_model import LmModel

# Room for activations and logits beside the weights.
ACTIVATION_BYTES = 1_000_000_000


def rounded(weight: mx.array, q: Quantization) -> mx.array:
    """What is left of a weight when it has been packed; the type of `weight` is that of the scales."""
    parts = pack(weight, q)
    wide = [p if p.dtype in (mx.uint32, mx.uint8) else p.astype(mx.float32) for p in parts]
    biases = wide[2] if len(wide) > 2 else None
    return mx.dequantize(wide[0], wide[1], biases, q.group_size, q.bits, q.mode).astype(mx.float32)


class _Parameters:
    """Where a model's parameters are, and how they are to be rounded at the moment."""

    def __init__(self, model: LanguageModel):
        self.plan, self.tensors = model.dense_plan(), model.tensors
        self.packing: Mapping[str, Quantization] = {}

    def type_of(self, name: str) -> mx.Dtype:
        """The type a weight is stored in, which that of its scales will be."""
        return kept_type(self.plan[name].kind(lambda source: self.tensors[source].dtype))

    def expr(self, name: str) -> Expr:
        path, _, leaf = name.rpartition(".")
        q = self.packing.get(path) if leaf == "weight" else None
        return self.plan[name] if q is None else Rounded(self.plan[name], q, self.type_of(name))

    def fill(self, module: nn.Module, prefix: str, names: Iterable[str]) -> None:
        """Read the parameters `names`, which `module` has without `prefix`."""
        plan = {name.removeprefix(prefix): self.expr(name) for name in names}
        fill.fill(module, plan, self.tensors, lambda _, stored: mx.float32, strict=False)


class Trial:
    """Logits of given codes with layers rounded as a packing says. Computes in float32."""

    def __init__(self, model: LanguageModel, codes: mx.array):
        self.codes = codes
        self._parameters = _Parameters(model)
        self._lm = LmModel(model.config.lm)
        values = sum(4 * _count(shape) for shape in model.parameters.values())
        crosses = model.config.lm.transformer.cross_attention
        self.streamed = not crosses and values + ACTIVATION_BYTES > memory.available_bytes() // 2
        # Of a streamed model norms and conditioners stay.
        self._here = sorted(self._parameters.plan.keys() - (self._stream() if self.streamed else set()))
        self._parameters.fill(self._lm, "", self._here)
        self._lm.set_compute_dtype(mx.float32)

    def logits(self, packing: Mapping[str, Quantization] | None = None) -> tuple[mx.array, mx.array | None]:
        """Text and codebook logits (see `verify.logits`)."""
        packing = packing or {}
        if self.streamed:
            self._parameters.packing = packing
            self._parameters.fill(self._lm, "", self._here)
            return logits(self._lm, self.codes)
        with self._rounded(packing):
            return logits(self._lm, self.codes)

    @contextmanager
    def _rounded(self, packing: Mapping[str, Quantization]) -> Iterator[None]:
        """The model in memory with some of its weights rounded."""
        modules = dict(self._lm.named_modules())
        before = {path: modules[path].weight for path in packing}
        # Codebooks that share depth weights share the rounded ones.
        done: dict[tuple[int, Quantization], mx.array] = {}
        try:
            for path, q in packing.items():
                key = (id(before[path]), q)
                if key not in done:
                    done[key] = rounded(before[path].astype(self._parameters.type_of(f"{path}.weight")), q)
                modules[path].weight = done[key]
            yield
        finally:
            for path, weight in before.items():
                modules[path].weight = weight

    def _stream(self) -> set[str]:
        """Put a `Streamed` in place of every layer, table and head; returns the parameters inside them."""
        inside: set[str] = set()

        def replace(parent: Any, key: Any, path: str) -> None:
            names = [n for n in self._parameters.plan if n.startswith(f"{path}.")]
            inside.update(names)
            parent[key] = Streamed(parent[key], partial(self._parameters.fill, prefix=f"{path}.", names=names))

        lm = self._lm
        for key in ("text_emb", "text_linear"):
            replace(lm, key, key)
        for i in range(len(lm.audio_embs)):
            replace(lm.audio_embs, i, f"audio_embs.{i}")
        stacks = [("transformer", lm.transformer)]
        for k, part in enumerate(lm.depformer.slices):
            stacks.append((f"depformer.slices.{k}.transformer", part.transformer))
            for key in ("emb", "linear_in", "linear_out"):
                replace(part, key, f"depformer.slices.{k}.{key}")
        for prefix, stack in stacks:
            for i in range(len(stack.layers)):
                replace(stack.layers, i, f"{prefix}.layers.{i}")
        return inside


class Streamed(nn.Module):
    """A layer whose weights are there while it is called."""

    def __init__(self, layer: nn.Module, fill: Callable[[nn.Module], None]):
        super().__init__()
        # Not a child: its weights are nobody's parameters.
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_fill", fill)
        object.__setattr__(self, "_empty", layer.parameters())

    def __call__(self, *args: Any, **options: Any) -> Any:
        self._fill(self._layer)
        out = self._layer(*args, **options)
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
