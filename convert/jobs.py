"""What goes into a file: the parameters of a language model in a layout, a type and a packing, as jobs of `stream`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import mlx.core as mx

from moshi_mlx.checkpoint.fill import CONDITIONS
from moshi_mlx.checkpoint.layouts.expr import Expr
from moshi_mlx.checkpoint.packing import Quantization, kept_type, pack, packed_specs
from moshi_mlx.checkpoint.weights_file import FLOATS
from moshi_mlx.checkpoint.weights_writer import TYPE_NAMES

from .stream import Job
from .tensors import StoredTensors


def dense_jobs(plan: Mapping[str, Expr], tensors: StoredTensors, dtype: mx.Dtype | None, prefix: str = "") -> list[Job]:
    """A tensor for every entry of `plan`, named with `prefix`; `dtype` None leaves each the type its sources have."""
    return [_dense(prefix + name, expr, tensors, dtype) for name, expr in plan.items()]


def _dense(name: str, expr: Expr, tensors: StoredTensors, dtype: mx.Dtype | None) -> Job:
    kind = expr.kind(lambda source: tensors[source].dtype)
    if kind not in FLOATS:
        return Job(expr, tensors, ((name, kind, expr.shape(tensors.shape)),), lambda x: (mx.contiguous(x),))
    packed_part = name.endswith((".scales", ".biases"))
    target = kept_type(kind) if dtype is None or packed_part or name.startswith(CONDITIONS) else dtype
    spec = (name, TYPE_NAMES[target], expr.shape(tensors.shape))
    return Job(expr, tensors, (spec,), lambda x: (mx.contiguous(x.astype(target)),))


def packed_jobs(
    plan: Mapping[str, Expr],
    tensors: StoredTensors,
    dtype: mx.Dtype | None,
    packing: Mapping[str, Quantization],
) -> list[Job]:
    """As `dense_jobs`, with the weights of the layers in `packing` quantised: exactly what `nn.quantize` makes of them."""
    jobs = []
    for name, expr in plan.items():
        path, _, leaf = name.rpartition(".")
        dense = _dense(name, expr, tensors, dtype)
        jobs.append(_packed(path, dense, packing[path]) if leaf == "weight" and path in packing else dense)
    return jobs


def _packed(path: str, dense: Job, q: Quantization) -> Job:
    ((_, kind, shape),) = dense.specs
    specs = packed_specs(path, shape, kind, q)

    def finish(x: mx.array) -> Sequence[mx.array]:
        (weight,) = dense.finish(x)
        return pack(weight, q)

    return Job(dense.expr, dense.tensors, tuple(specs), finish)
