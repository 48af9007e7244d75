"""The graph of a function of arrays as MLX would compile it for a GPU, with shapes: exported, then fused by MLX's own rules.

`as_gpu` replaces the operations that the CPU backend spells out, while a graph is built, by single ones which occur nowhere else. Nothing is
evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

# Scans that run backwards, which no model does: by what they accumulate and whether they count their own element.
STAND_INS = {
    (2, False): "RMSNorm", (3, False): "LayerNorm", (0, False): "RoPE", (1, False): "Attention", (0, True): "Dequantize", (1, True): "Quantize",
}  # fmt: skip

# mlx/compile.cpp: what may be fused, how deep, and how many arrays a kernel may have.
FUSABLE = {
    "Abs", "ArcCos", "ArcSin", "ArcTan", "AsType", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Expm1", "Floor", "Log", "Log1p", "LogicalNot",
    "Negative", "Remainder", "Round", "Sigmoid", "Sign", "Sin", "Sinh", "Square", "Sqrt", "Tan", "Tanh", "BitwiseInvert", "Add", "Divide",
    "Equal", "Greater", "GreaterEqual", "Less", "LessEqual", "LogicalAnd", "LogicalOr", "LogAddExp", "Maximum", "Minimum", "Multiply",
    "NotEqual", "Power", "Subtract", "BitwiseBinary", "ArcTan2", "Select", "Broadcast",
}  # fmt: skip
MOST_DEEP, MOST_ARRAYS = 11, 24


@dataclass(eq=False)
class Array:
    shape: tuple[int, ...]
    dtype: mx.Dtype
    node: Node | None = None
    # Inputs of the graph are "state", which the step lets go of, or "constant".
    kind: str = "made"

    @property
    def size(self) -> int:
        n = 1
        for s in self.shape:
            n *= s
        return n


@dataclass(eq=False)
class Node:
    name: str
    arguments: list[Any]
    inputs: list[Array]
    outputs: list[Array] = field(default_factory=list)
    # Names of the operations in a fused one.
    fused: list[str] = field(default_factory=list)


@contextmanager
def as_gpu() -> Iterator[None]:
    """While active, the package takes its branches for a GPU, and `mx.fast` and (de-)quantising are one operation each."""

    def stand_in(scan: Callable, x: mx.array, *others: Any, inclusive: bool = False) -> mx.array:
        y = scan(x, axis=-1, reverse=True, inclusive=inclusive)
        arrays = [a for a in others if isinstance(a, mx.array)]
        return mx.depends([y], arrays)[0] if arrays else y

    def dequantize(w, scales, biases=None, group_size=None, bits=None, mode="affine", dtype=None, **_):
        kind = dtype or (mx.bfloat16 if scales.dtype == mx.uint8 else scales.dtype)
        zeros = mx.broadcast_to(mx.array(0, kind), (*w.shape[:-1], w.shape[-1] * 32 // bits))
        return stand_in(mx.cummax, zeros, w, scales, inclusive=True)

    def quantize(x, group_size=64, bits=4, **_):
        packed = mx.broadcast_to(mx.array(0, mx.uint32), (*x.shape[:-1], x.shape[-1] * bits // 32))
        packed = stand_in(mx.cummin, packed, x, inclusive=True)
        scales = mx.broadcast_to(mx.array(0, x.dtype), (*x.shape[:-1], x.shape[-1] // group_size))
        return packed, *mx.depends([scales, scales], [packed])

    replaced = [
        (mx.fast, "rms_norm", lambda x, weight, eps, **_: stand_in(mx.cumsum, x, weight)),
        (mx.fast, "layer_norm", lambda x, weight, bias, eps, **_: stand_in(mx.cumprod, x, weight, bias)),
        (mx.fast, "rope", lambda x, *_, offset, **__: stand_in(mx.cummax, x, offset)),
        (
            mx.fast,
            "scaled_dot_product_attention",
            lambda q, k, v, *, scale, mask=None, **_: stand_in(mx.cummin, q, k, v, mask),
        ),
        (mx, "dequantize", dequantize),
        (mx, "quantize", quantize),
        (mx, "default_device", lambda: mx.Device(mx.gpu)),
    ]
    with ExitStack() as stack:
        for owner, name, value in replaced:
            stack.enter_context(patch.object(owner, name, value))
        yield


def export(function: Callable[..., Any], *trees: Any) -> tuple[list[Node], list[Array]]:
    """Operations of `function(*trees)` in the order of the graph, and its outputs. `trees` are of arrays, which are the graph's inputs."""
    leaves = tree_flatten(list(trees))
    outputs: list[str] = []
    nodes: list[Node] = []
    known: dict[str, Array] = {}

    def flat(*arrays: mx.array) -> list[mx.array]:
        rebuilt = tree_unflatten([(name, a) for (name, _), a in zip(leaves, arrays, strict=True)])
        # Empty containers have no leaves.
        given = [rebuilt[i] if i < len(rebuilt) and tree_flatten(t) else t for i, t in enumerate(trees)]
        return [a for _, a in tree_flatten([function(*given)]) if isinstance(a, mx.array)]

    def see(said: dict) -> None:
        if said["type"] == "inputs":
            known.update({name: Array(tuple(shape), dtype, kind="state") for name, shape, dtype in said["inputs"]})
        elif said["type"] == "outputs":
            outputs.extend(name for name, *_ in said["outputs"])
        elif said["type"] == "constants":
            known.update({name: Array(tuple(a.shape), a.dtype, kind="constant") for name, a in said["constants"]})
        elif said["type"] == "primitive":
            name = said["name"]
            if name == "Scan" and said["arguments"][2]:
                name = STAND_INS[said["arguments"][0], said["arguments"][3]]
            node = Node(name, list(said["arguments"]), [known[i] for i, *_ in said["inputs"]])
            for out, shape, dtype in said["outputs"]:
                known[out] = Array(tuple(shape), dtype, node)
                node.outputs.append(known[out])
            nodes.append(node)

    mx.export_function(see, flat, *[a for _, a in leaves])
    return nodes, [known[name] for name in outputs]


def fuse(nodes: list[Node], outputs: list[Array]) -> list[Node]:
    """Elementwise operations joined into kernels, as `mx.compile` does (compile_fuse in mlx/compile.cpp)."""
    parents: dict[Array, list[Node]] = {}
    for node in nodes:
        for a in node.inputs:
            parents.setdefault(a, []).append(node)
    results, done, kept = set(outputs), set(), []
    for node in reversed(nodes):
        last = node.outputs[-1]
        if last in done:
            continue
        joined = {} if node.name not in FUSABLE or node.name == "Broadcast" else _joinable(last, parents, results)
        if len(joined) <= 1:
            kept.append(node)
            continue
        inputs, order = _in_order(last, joined)
        made = [a for a in order[:-1] if a in results] + [last]
        kernel = Node("Fused", [], inputs, made, [a.node.name for a in order if a.node is not None])
        done.update(order[:-1])
        inside = {a.node for a in order}
        for a in inputs:
            parents[a] = [p for p in parents.get(a, []) if p not in inside] + [kernel]
        for a in made:
            parents[a] = [p for p in parents.get(a, []) if p not in inside]
            a.node = kernel
        kept.append(kernel)
    return kept[::-1]


def _joinable(last: Array, parents: dict[Array, list[Node]], results: set[Array]) -> dict[Array, None]:
    """What may run in the kernel that ends with `last`. Broadcasts that others read too are split off, and their copy taken in."""
    joined: dict[Array, None] = {}
    inputs: set[Array] = set()

    def visit(a: Array, depth: int) -> None:
        if a in joined:
            return
        node = a.node
        if depth >= MOST_DEEP or node is None or node.name not in FUSABLE or (a in results and a.shape != last.shape):
            inputs.add(a)
            return
        if depth > 0 and not all(p.outputs[-1] in joined for p in parents[a]):
            if node.name != "Broadcast" or len(inputs) >= MOST_ARRAYS:
                inputs.add(a)
                return
            a = _split_off(a, node, parents, joined)
        if a in results:
            inputs.add(a)
        else:
            inputs.discard(a)
        if len(inputs) >= MOST_ARRAYS:
            return
        joined[a] = None
        for i in a.node.inputs if a.node is not None else []:
            visit(i, depth + 1)

    visit(last, 0)
    return joined


def _split_off(a: Array, node: Node, parents: dict[Array, list[Node]], joined: dict[Array, None]) -> Array:
    """A second broadcast of the same array, for the readers that are joined already."""
    copy = Array(a.shape, a.dtype)
    copy.node = Node(node.name, node.arguments, node.inputs, [copy])
    inside = [p for p in parents[a] if p.outputs[-1] in joined]
    for p in inside:
        p.inputs = [copy if i is a else i for i in p.inputs]
    parents[copy], parents[a] = inside, [p for p in parents[a] if p not in inside]
    for i in node.inputs:
        parents[i].append(copy.node)
    return copy


def _in_order(last: Array, joined: dict[Array, None]) -> tuple[list[Array], list[Array]]:
    """Inputs of a kernel, and what it computes, each after what it reads."""
    inputs: dict[Array, None] = {}
    order: dict[Array, None] = {}

    def visit(a: Array) -> None:
        if a not in joined:
            inputs[a] = None
        elif a not in order and a.node is not None:
            for i in a.node.inputs:
                visit(i)
            order[a] = None

    visit(last)
    return list(inputs), list(order)
