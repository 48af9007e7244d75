"""How many kernels Metal launches for an operation, and how what it writes lies in memory.

Read from the Metal backend of MLX 0.32 (mlx/backend/metal, mlx/backend/gpu, mlx/backend/common), for a base chip of the generations before
M5. The rules in words; `Simulation` applies them to a graph in its order, with strides and with buffers that change hands:

| operation | launches | source |
|---|---|---|
| reshape, flatten, unflatten | none, or a copy where the new shape does not fit the strides | common.cpp, prepare_reshape |
| transpose, slice, split, squeeze, broadcast, as_strided | none | common.cpp, slicing.cpp |
| elementwise, fused or alone; type conversion | 1 | compiled.cpp, unary.cpp, binary.cpp, ternary.cpp, copy.cpp |
| concatenation | 1 for each input | slicing.cpp, concatenate_gpu |
| dynamic slice update | 2, the first computes the place; and a copy where the old array is still held | gpu/primitives.cpp |
| slice update, scatter along an axis, scatter | 1, and that copy | indexing.cpp |
| gather, arg-reduction, random bits, scan, softmax, log-sum-exp | 1 | indexing.cpp, primitives.cpp, scan.cpp, softmax.cpp |
| reduction | 1; 2 over everything of more than 4096; a copy first where no axis of the input is contiguous | reduce.cpp |
| sort, partition | 1 for rows up to 2048, longer ones 1, 2 for each doubling of blocks, and a copy | sort.cpp |
| product | 1; 2 (split along what is summed) where rows and columns are few and the sum is long; a copy for each operand without a stride of 1 | matmul.cpp |
| product with packed weights | 1 below the limit of rows for vector kernels; 2 above, and where packed values of 1024 keys and more are summed; a copy of an operand that has gaps | quantized.cpp |
| normalisation | 1, and a copy of an input with gaps | normalization.cpp |
| rotation | 1, and a copy of an input of more than 3 axes that has gaps | rope.cpp |
| attention | 1, and a copy of queries, keys, values whose features are not side by side | scaled_dot_product_attention.cpp |
| (de-)quantising | 1 | quantized.cpp |
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from graphs import FUSABLE, Array, Node

# Rows from which a product with packed weights is a matrix product, on the smallest chips the least.
PACKED_ROWS = 4
VIEWS = {"Broadcast", "BroadcastAxes", "Depends", "StopGradient", "Copy", "NumberOfElements"}


def row_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


@dataclass(frozen=True)
class Layout:
    """Strides, and the flags of mlx/array.h: row and column contiguous, contiguous (no gaps), elements in the buffer."""

    strides: tuple[int, ...]
    row: bool
    column: bool
    contiguous: bool
    data_size: int

    @staticmethod
    def plain(shape: tuple[int, ...]) -> Layout:
        size = math.prod(shape)
        return Layout(row_strides(shape), True, size <= 1 or size == max(shape, default=1), True, size)

    @staticmethod
    def of(shape: tuple[int, ...], strides: tuple[int, ...], data_size: int | None = None) -> Layout:
        row, column, forward, backward, size = True, True, 1, 1, 1
        for i in range(len(shape)):
            r = len(shape) - 1 - i
            column &= strides[i] == forward or shape[i] == 1
            row &= strides[r] == backward or shape[r] == 1
            forward, backward = forward * shape[i], backward * shape[r]
            size *= shape[i] if strides[i] > 0 else 1
        extent = sum(abs(st) * (s - 1) for s, st in zip(shape, strides, strict=True)) + 1
        data_size = extent if data_size is None else data_size
        return Layout(strides, row, column, size == data_size and min(strides, default=0) >= 0, data_size)


def collapse(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Axes that lie one in the other joined (collapse_contiguous_dims). A first axis of one keeps its stride and joins nothing that differs."""
    sizes, steps = list(shape[:1]), list(strides[:1])
    for size, step in zip(shape[1:], strides[1:], strict=True):
        if size == 1:
            continue
        if step * size == steps[-1]:
            sizes[-1], steps[-1] = sizes[-1] * size, step
        else:
            sizes.append(size)
            steps.append(step)
    return sizes, steps


class Simulation:
    """Launches of a graph, by name; `copies` counts those that only move data for a layout's sake, by the operation that wanted them."""

    def __init__(self, nodes: list[Node], outputs: list[Array]):
        self.layouts: dict[Array, Layout] = {}
        self.buffers: dict[Array, object] = {}
        self.launches: Counter = Counter()
        self.copies: Counter = Counter()
        self.bytes_copied: Counter = Counter()
        self._last: dict[Array, int] = {}
        self._sharing: dict[object, set[Array]] = {}
        for i, node in enumerate(nodes):
            self._last.update(dict.fromkeys(node.inputs, i))
        self._last.update(dict.fromkeys(outputs, len(nodes)))
        for self._now, node in enumerate(nodes):
            for a in node.inputs:
                if a not in self.layouts:
                    self._made(a, Layout.plain(a.shape))
            self._run(node)

    @property
    def total(self) -> int:
        return sum(self.launches.values())

    # Memory -----------------------------------------------------------------------------------------------------

    def _made(self, a: Array, layout: Layout | None = None, buffer: object | None = None) -> None:
        self.layouts[a] = layout or Layout.plain(a.shape)
        self.buffers[a] = buffer = object() if buffer is None else buffer
        self._sharing.setdefault(buffer, set()).add(a)

    def _shared(self, a: Array, source: Array, layout: Layout) -> None:
        self._made(a, layout, self.buffers[source])

    def _free(self, a: Array) -> bool:
        """Whether nobody reads the memory of `a` after now: then it may be written in place."""
        sharing = self._sharing[self.buffers[a]]
        return all(b.kind != "constant" and self._last.get(b, -1) <= self._now for b in sharing)

    def _launch(self, name: str, n: int = 1) -> None:
        self.launches[name] += n

    def _copied(self, a: Array, why: str) -> Layout:
        self.launches["Copy"] += 1
        self.copies[why] += 1
        self.bytes_copied[why] += a.size * a.dtype.size
        return Layout.plain(a.shape)

    # Operations -------------------------------------------------------------------------------------------------

    def _run(self, node: Node) -> None:
        name = node.name
        if name in ("Fused", *FUSABLE) and name != "Broadcast":
            self._elementwise(node)
        elif name in VIEWS or name in ("Slice", "Split", "Transpose", "Squeeze", "ExpandDims", "AsStrided", "View"):
            self._view(node)
        elif name in ("Reshape", "Flatten", "Unflatten"):
            self._reshape(node, node.outputs[0])
        else:
            RULES.get(name, Simulation._one)(self, node)
            for out in node.outputs:
                if out not in self.layouts:
                    self._made(out)

    def _one(self, node: Node) -> None:
        if node.name not in ONE_LAUNCH:
            raise NotImplementedError(f"no rule for {node.name}: read MLX's Metal backend and add one.")
        self._launch(node.name)

    def _elementwise(self, node: Node) -> None:
        self._launch(node.name)
        shape = node.outputs[-1].shape
        wide = [a for a in node.inputs if self.layouts[a].data_size > 1]
        layouts = [self.layouts[a] for a in wide]
        alike = all(a.shape == shape for a in wide)
        kept = alike and (
            (len(wide) == 1 and layouts[0].contiguous)
            or (len(wide) > 1 and (all(x.row for x in layouts) or all(x.column for x in layouts)))
        )
        for out in node.outputs:
            self._made(out, layouts[0] if kept and wide else None)

    def _view(self, node: Node) -> None:
        a = node.inputs[0]
        old, arguments = self.layouts[a], node.arguments
        for i, out in enumerate(node.outputs):
            if node.name == "Depends":
                a, old = node.inputs[i], self.layouts[node.inputs[i]]
            strides, size = list(old.strides), None
            if node.name in ("Broadcast", "BroadcastAxes"):
                lead = len(out.shape) - len(a.shape)
                wide = [0 if a.shape[j] != out.shape[lead + j] else old.strides[j] for j in range(len(a.shape))]
                strides, size = [0] * lead + wide, old.data_size
            elif node.name == "Slice":
                strides = [s * step for s, step in zip(old.strides, arguments[2], strict=True)]
            elif node.name == "Transpose":
                strides, size = [old.strides[j] for j in arguments[0]], old.data_size
            elif node.name == "Squeeze":
                strides, size = [s for j, s in enumerate(old.strides) if j not in arguments[0]], old.data_size
            elif node.name == "ExpandDims":
                for j in arguments[0]:
                    strides.insert(j, 1)
                size = old.data_size
            elif node.name == "AsStrided":
                strides = list(arguments[1])
            elif node.name == "View" and a.dtype.size != out.dtype.size:
                strides = [s * a.dtype.size // out.dtype.size for s in strides[:-1]] + strides[-1:]
            if node.name in ("Depends", "Copy", "StopGradient"):
                self._shared(out, a, old)
            else:
                self._shared(out, a, Layout.of(out.shape, tuple(strides), size))

    def _reshape(self, node: Node, out: Array) -> None:
        a = node.inputs[0]
        old = self.layouts[a]
        if old.row:
            self._shared(out, a, Layout.plain(out.shape))
            return
        sizes, steps = collapse(a.shape, old.strides)
        strides: list[int] = []
        for size in out.shape:
            if sizes and sizes[0] % size == 0:
                sizes[0] //= size
                strides.append(sizes[0] * steps[0])
                if sizes[0] == 1:
                    del sizes[0], steps[0]
            elif size == 1:
                strides.append(strides[-1])
            else:
                self._made(out, self._copied(a, "reshape"))
                return
        self._shared(out, a, Layout.of(out.shape, tuple(strides), old.data_size))

    def _concatenate(self, node: Node) -> None:
        self._launch("Concatenate", len(node.inputs))

    def _update(self, node: Node, launches: int) -> None:
        """An array written at some places: in its own memory where nobody else holds that."""
        old, out = node.inputs[0], node.outputs[0]
        self._launch(node.name, launches)
        if self.layouts[old].row and self._free(old):
            self._shared(out, old, self.layouts[old])
        else:
            self._made(out, self._copied(old, "held by somebody"))

    def _dynamic_slice_update(self, node: Node) -> None:
        self._update(node, 2)

    def _write(self, node: Node) -> None:
        self._update(node, 1)

    def _reduce(self, node: Node) -> None:
        a, layout = node.inputs[0], self.layouts[node.inputs[0]]
        axes = set(node.arguments[1])
        if not layout.contiguous and len(a.shape) - 1 not in axes:
            self._copied(a, "reduction")
        everything = math.prod(s for i, s in enumerate(a.shape) if i not in axes) == 1 and layout.contiguous
        self._launch("Reduce", 2 if everything and a.size > 4096 else 1)

    def _sort(self, node: Node) -> None:
        a = node.inputs[0]
        axis = node.arguments[-1]
        blocks = -(-a.shape[axis] // (2048 if a.dtype.size <= 4 else 1024))
        self._launch(node.name, 1 if blocks == 1 else 2 + 2 * math.ceil(math.log2(blocks)))

    def _operand(self, a: Array, vector: bool) -> bool:
        """Whether the second last axis is the one with stride 1; copied where neither of the two is."""
        first, second = self.layouts[a].strides[-2:]
        if second == 1 and (not vector or first == a.shape[-1]):
            return False
        if first == 1 and (not vector or second == a.shape[-2]):
            return True
        self._copied(a, "product")
        return False

    def _matmul(self, node: Node) -> None:
        a, b = node.inputs[:2]
        rows, length, columns = a.shape[-2], a.shape[-1], b.shape[-1]
        self._operand(a, rows == 1)
        self._operand(b, columns == 1)
        batch = math.prod(node.outputs[0].shape[:-2])
        tiles = -(-rows // 16) * -(-columns // 16)
        long = batch == 1 and tiles <= 1024 and length // 16 >= 8 and length >= max(rows, columns)
        self._launch("Matmul", 2 if min(rows, columns) > 1 and long else 1)

    def _quantized_matmul(self, node: Node) -> None:
        for a in node.inputs:
            # An axis of one has a stride too, and it is looked at.
            if self.layouts[a].strides[-2:] != (a.shape[-1], 1):
                self._copied(a, "packed product")
        x, w = node.inputs[:2]
        rows = x.size // x.shape[-1] if len(w.shape) == 2 else x.shape[-2]
        transposed = x.shape[-1] != w.shape[-2]
        if transposed:
            self._launch("QuantizedMatmul", 1 if rows < PACKED_ROWS else 2)
        else:
            self._launch("QuantizedMatmul", 1 if x.shape[-1] < 1024 else 2)

    def _norm(self, node: Node) -> None:
        a, layout = node.inputs[0], self.layouts[node.inputs[0]]
        gaps = not layout.contiguous or layout.strides[-1] != 1
        if len(a.shape) > 1:
            gaps |= layout.strides[-2] not in (0, a.shape[-1]) and a.shape[-2] != 1
        # The output lies as the input does.
        self._made(node.outputs[0], self._copied(a, "norm") if gaps else layout)
        self._launch(node.name)

    def _softmax(self, node: Node) -> None:
        a, layout = node.inputs[0], self.layouts[node.inputs[0]]
        gaps = not layout.contiguous or layout.strides[-1] != 1
        self._made(node.outputs[0], self._copied(a, "softmax") if gaps else layout)
        self._launch("Softmax")

    def _rotation(self, node: Node) -> None:
        a, layout = node.inputs[0], self.layouts[node.inputs[0]]
        axes = len(a.shape)
        lead = axes
        while lead > 3 and a.shape[axes - lead] == 1:
            lead -= 1
        if not layout.row and lead != 3 and not self._heads_swapped(a, layout):
            self._copied(a, "rotation")
        self._launch("RoPE")

    def _heads_swapped(self, a: Array, layout: Layout) -> bool:
        if len(a.shape) != 4:
            return False
        _, n, t, d = a.shape
        return layout.strides[0] == t * n * d and layout.strides[1] == d and layout.strides[2] == n * d

    def _attention(self, node: Node) -> None:
        q = node.inputs[0]
        layout, shape = self.layouts[q], q.shape
        if not layout.row:
            swapped = False
            if 1 in shape[:2]:
                i = 1 if shape[0] == 1 else 0
                s = layout.strides
                swapped = s[3] == 1 and s[2] == shape[3] * shape[i] and s[i] == shape[3]
            if not swapped:
                self._copied(q, "queries")
        self._launch("Attention")


ONE_LAUNCH = {
    "Gather",
    "GatherAxis",
    "ArgReduce",
    "RandomBits",
    "Scan",
    "LogSumExp",
    "Arange",
    "Full",
    "Dequantize",
    "Quantize",
}
RULES = {
    "Concatenate": Simulation._concatenate, "DynamicSliceUpdate": Simulation._dynamic_slice_update, "SliceUpdate": Simulation._write,
    "ScatterAxis": Simulation._write, "Scatter": Simulation._write, "Reduce": Simulation._reduce, "Sort": Simulation._sort,
    "Partition": Simulation._sort, "ArgSort": Simulation._sort, "ArgPartition": Simulation._sort, "Matmul": Simulation._matmul,
    "QuantizedMatmul": Simulation._quantized_matmul, "RMSNorm": Simulation._norm, "LayerNorm": Simulation._norm,
    "Softmax": Simulation._softmax, "RoPE": Simulation._rotation, "Attention": Simulation._attention,
}  # fmt: skip
