"""How one tensor is made from stored tensors: small trees that know their sources before anything is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

Get = Callable[[str], mx.array]
Shapes = Callable[[str], tuple[int, ...]]


class Expr:
    """A tensor to be. `sources` names what is read; `shape` tells the result from the sources' shapes alone."""

    def sources(self) -> Iterator[str]:
        raise TypeError(f"{type(self).__name__} has no sources()")

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        raise TypeError(f"{type(self).__name__} has no shape()")

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
        return self.weight.shape(shapes)

    def build(self, get):
        scale = self.row_max.build(get).astype(mx.float32) / 127.0
        return (self.weight.build(get).astype(mx.float32) * scale[:, None]).astype(mx.bfloat16)


@dataclass(frozen=True)
class WeightNorm(Expr):
    """`g * v / |v|`, the norm over all axes but the first."""

    g: Expr
    v: Expr

    def sources(self):
        yield from self.g.sources()
        yield from self.v.sources()

    def shape(self, shapes):
        return self.v.shape(shapes)

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
        return self.total.shape(shapes)

    def build(self, get):
        usage = mx.maximum(self.usage.build(get).astype(mx.float32), 1e-5)
        return self.total.build(get).astype(mx.float32) / usage[:, None]
