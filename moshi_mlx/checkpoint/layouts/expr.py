"""How one tensor is made from stored tensors: small trees that know their sources before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx

from ...errors import CheckpointError

Get = Callable[[str], mx.array]
Shapes = Callable[[str], tuple[int, ...]]
# Stored type of a tensor by its safetensors name: BF16, F32, ...
Kinds = Callable[[str], str]


def widest(kinds: Iterable[str]) -> str:
    """The type that holds all of `kinds`: two different half precisions need F32."""
    found = set(kinds)
    return found.pop() if len(found) == 1 else "F64" if "F64" in found else "F32"


class Expr:
    """A tensor to be. `sources` names what is read; `shape` and `kind` tell the result from the header alone."""

    def sources(self) -> Iterator[str]:
        raise TypeError(f"{type(self).__name__} has no sources()")

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        raise TypeError(f"{type(self).__name__} has no shape()")

    def kind(self, kinds: Kinds) -> str:
        """Type a file gives the result unless another is asked for."""
        return widest(kinds(name) for name in self.sources())

    def build(self, get: Get) -> mx.array:
        raise TypeError(f"{type(self).__name__} has no build()")


@dataclass(frozen=True)
class Stored(Expr):
    """A tensor of the file as it is."""

    name: str

    def sources(self):
        yield self.name

    def shape(self, shapes):
        return shapes(self.name)

    def build(self, get):
        return get(self.name)


@dataclass(frozen=True)
class Rows(Expr):
    """Block `index` of `count` equal blocks of rows."""

    of: Expr
    index: int
    count: int

    def sources(self):
        return self.of.sources()

    def shape(self, shapes):
        rows, *rest = self.of.shape(shapes)
        return (rows // self.count, *rest) if rows % self.count == 0 else (-1, *rest)

    def build(self, get):
        x = self.of.build(get)
        size = x.shape[0] // self.count
        return x[self.index * size : (self.index + 1) * size]


@dataclass(frozen=True)
class Index(Expr):
    """Entry `index` of a tensor `[count, ...]`."""

    of: Expr
    index: int
    count: int

    def sources(self):
        return self.of.sources()

    def shape(self, shapes):
        count, *rest = self.of.shape(shapes)
        return tuple(rest) if count == self.count else (-1,)

    def build(self, get):
        return self.of.build(get)[self.index]


@dataclass(frozen=True)
class Slice(Expr):
    """Rows `start` to `stop`."""

    of: Expr
    start: int
    stop: int

    def sources(self):
        return self.of.sources()

    def shape(self, shapes):
        rows, *rest = self.of.shape(shapes)
        return (min(self.stop, rows) - self.start, *rest)

    def build(self, get):
        return self.of.build(get)[self.start : self.stop]


@dataclass(frozen=True)
class Concat(Expr):
    """Rows of several tensors, one after the other."""

    parts: tuple[Expr, ...]

    def sources(self):
        for part in self.parts:
            yield from part.sources()

    def shape(self, shapes):
        all_shapes = [p.shape(shapes) for p in self.parts]
        if any(s[1:] != all_shapes[0][1:] for s in all_shapes):
            return (-1,)
        return (sum(s[0] for s in all_shapes), *all_shapes[0][1:])

    def build(self, get):
        return mx.concatenate([p.build(get) for p in self.parts], axis=0)


@dataclass(frozen=True)
class Stack(Expr):
    """Tensors of one shape as entries of a new first axis."""

    parts: tuple[Expr, ...]

    def sources(self):
        for part in self.parts:
            yield from part.sources()

    def shape(self, shapes):
        found = {p.shape(shapes) for p in self.parts}
        return (len(self.parts), *found.pop()) if len(found) == 1 else (-1,)

    def build(self, get):
        return mx.stack([p.build(get) for p in self.parts])


@dataclass(frozen=True)
class Reshape(Expr):
    """The same values in another shape; one -1 is inferred."""

    of: Expr
    to: tuple[int, ...]

    def sources(self):
        return self.of.sources()

    def shape(self, shapes):
        total = 1
        for n in self.of.shape(shapes):
            total *= n
        known = 1
        for n in self.to:
            known *= n if n != -1 else 1
        return tuple(total // known if n == -1 else n for n in self.to)

    def build(self, get):
        return self.of.build(get).reshape(self.to)


@dataclass(frozen=True)
class Transpose(Expr):
    of: Expr
    axes: tuple[int, ...]

    def sources(self):
        return self.of.sources()

    def shape(self, shapes):
        s = self.of.shape(shapes)
        return tuple(s[a] for a in self.axes) if len(s) == len(self.axes) else (-1,)

    def build(self, get):
        return self.of.build(get).transpose(self.axes)


@dataclass(frozen=True)
class Pairs(Expr):
    """Rotary pairs of every head re-ordered: neighbours (2i, 2i + 1) to halves (i, i + D / 2), or back (mimi.md 8.2)."""

    of: Expr
    heads: int
    to_halves: bool

    def sources(self):
        return self.of.sources()

    def shape(self, shapes):
        return self.of.shape(shapes)

    def build(self, get):
        x = self.of.build(get)
        split = (self.heads, -1, 2) if self.to_halves else (self.heads, 2, x.shape[0] // self.heads // 2)
        return x.reshape(*split, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


@dataclass(frozen=True)
class Int8(Expr):
    """Row-wise int8 of the PyTorch q8 files: value = weight * row maximum / 127 (lm.md 9.3)."""

    weight: Expr
    row_max: Expr

    def sources(self):
        yield from self.weight.sources()
        yield from self.row_max.sources()

    def shape(self, shapes):
        shape = self.weight.shape(shapes)
        return shape if self.row_max.shape(shapes) == shape[:1] else (-1,)

    def kind(self, kinds):
        return "BF16"

    def build(self, get):
        scale = self.row_max.build(get).astype(mx.float32) / 127.0
        return self.weight.build(get).astype(mx.float32) * scale[:, None]


@dataclass(frozen=True)
class WeightNorm(Expr):
    """`g * v / |v|`, the norm over all axes but the first."""

    g: Expr
    v: Expr

    def sources(self):
        yield from self.g.sources()
        yield from self.v.sources()

    def shape(self, shapes):
        shape = self.v.shape(shapes)
        return shape if self.g.shape(shapes) == (shape[0], *[1] * len(shape[1:])) else (-1,)

    def kind(self, kinds):
        return "F32"

    def build(self, get):
        v = self.v.build(get).astype(mx.float32)
        norm = mx.sqrt(mx.sum(v * v, axis=tuple(range(1, v.ndim)), keepdims=True))
        return self.g.build(get).astype(mx.float32).reshape(norm.shape) * v / norm


@dataclass(frozen=True)
class Centroids(Expr):
    """Codebook entries from their running sums: `embedding_sum / max(cluster_usage, 1e-5)` in float32 (mimi.md 6)."""

    total: Expr
    usage: Expr

    def sources(self):
        yield from self.total.sources()
        yield from self.usage.sources()

    def shape(self, shapes):
        shape = self.total.shape(shapes)
        return shape if self.usage.shape(shapes) == shape[:1] else (-1,)

    def kind(self, kinds):
        return "F32"

    def build(self, get):
        usage = mx.maximum(self.usage.build(get).astype(mx.float32), 1e-5)
        return self.total.build(get).astype(mx.float32) / usage[:, None]


@dataclass(frozen=True)
class Filled(Expr):
    """What a layout adds and no model of ours has: `value` everywhere, of the type of `like`, which is not read for it."""

    to: tuple[int, ...]
    value: float
    like: Expr

    def sources(self):
        yield from ()

    def shape(self, shapes):
        return self.to

    def kind(self, kinds):
        return self.like.kind(kinds)

    def build(self, get):
        return mx.full(self.to, self.value, mx.bfloat16)


@dataclass(frozen=True)
class Same(Expr):
    """A tensor that a file repeats, once per codebook that shares it: all of `parts` have to agree."""

    parts: tuple[Expr, ...]

    def sources(self):
        for part in self.parts:
            yield from part.sources()

    def shape(self, shapes):
        found = {p.shape(shapes) for p in self.parts}
        return found.pop() if len(found) == 1 else (-1,)

    def build(self, get):
        first, *rest = dict.fromkeys(self.parts)
        x = first.build(get)
        for part in rest:
            if not mx.array_equal(x, part.build(get)):
                names = ", ".join([*first.sources(), *part.sources()])
                raise CheckpointError(f"{names} should be the same, since the other layout has one tensor for them.")
        return x


@dataclass(frozen=True)
class LowRank(Expr):
    """`base + scale * up @ down`, a merged LoRA adapter (family.md 7): summed in float32, to be rounded once."""

    base: Expr
    down: Expr
    up: Expr
    scale: float

    def sources(self):
        for part in (self.base, self.down, self.up):
            yield from part.sources()

    def shape(self, shapes):
        base, down, up = (p.shape(shapes) for p in (self.base, self.down, self.up))
        return base if (*up[:1], *down[1:]) == base and up[1:] == down[:1] else (-1,)

    def kind(self, kinds):
        return self.base.kind(kinds)

    def build(self, get):
        # The small product first: the base is read when its sum is made, and nothing else is held then.
        delta = self.scale * (self.up.build(get).astype(mx.float32) @ self.down.build(get).astype(mx.float32))
        mx.eval(delta)
        return self.base.build(get).astype(mx.float32) + delta


@dataclass(frozen=True)
class Packed(Expr):
    """A quantised matrix of the MLX layout as plain numbers."""

    weight: Expr
    scales: Expr
    biases: Expr | None
    group_size: int
    bits: int
    mode: str

    def sources(self):
        for part in (self.weight, self.scales, self.biases):
            if part is not None:
                yield from part.sources()

    def shape(self, shapes):
        *rest, columns = self.weight.shape(shapes)
        inputs = columns * 32 // self.bits
        groups = {p.shape(shapes) for p in (self.scales, self.biases) if p is not None}
        return (*rest, inputs) if groups == {(*rest, inputs // self.group_size)} else (-1,)

    def kind(self, kinds):
        return self.scales.kind(kinds) if self.mode == "affine" else "BF16"

    def build(self, get):
        scales = self.scales.build(get)
        scales = scales if scales.dtype == mx.uint8 else scales.astype(mx.float32)
        biases = None if self.biases is None else self.biases.build(get).astype(mx.float32)
        y = mx.dequantize(self.weight.build(get), scales, biases, self.group_size, self.bits, self.mode)
        return y.astype(mx.float32)


def substitute(expr: Expr, plan: Mapping[str, Expr]) -> Expr:
    """`expr` with every stored tensor replaced by the expression `plan` has for its name: one layout in terms of another."""
    if isinstance(expr, Stored):
        return plan[expr.name]

    def inside(value: Any) -> Any:
        if isinstance(value, Expr):
            return substitute(value, plan)
        return tuple(inside(v) for v in value) if isinstance(value, tuple) else value

    return replace(expr, **{f.name: inside(getattr(expr, f.name)) for f in fields(expr)})  # type: ignore[type-var, arg-type]
