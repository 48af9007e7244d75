"""Fill a module from a weights file: names, shapes and values checked, precision taken from the file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..errors import CheckpointError, clean
from ..machine import device
from .layouts import kinds
from .layouts.expr import Expr
from .packing import Quantization, is_int8, kept_type, pack
from .weights_file import FLOATS, MX_DTYPES, WeightsFile

# Evaluated together while loading: large enough to keep the disk busy, small enough that casts stay small.
GROUP_BYTES = 256 << 20

# Conditioners are computed in float32 (lm.md 10) and stay what they are.
CONDITIONS = "condition_provider."

Progress = Callable[[int, int], None]
# Unsigned and signed integers of the same size, and positive infinity as one.
_AS_INTEGERS = {
    mx.float32: (mx.uint32, mx.int32, 0x7F800000),
    mx.float16: (mx.uint16, mx.int16, 0x7C00),
    mx.bfloat16: (mx.uint16, mx.int16, 0x7F80),
}
_FLOAT_TYPES = tuple(_AS_INTEGERS)
_NORM_SCALE = re.compile(r"norm(\d*|_cross)\.weight$")


def stored_quantization(file: WeightsFile, path: str, in_features: int) -> Quantization | None:
    """Packing of `{path}.weight`, told by its shapes and the presence of scales; None when it is dense, or not there at all."""
    if f"{path}.scales" not in file or f"{path}.weight" not in file:
        return None
    weight, scales = file[f"{path}.weight"], file[f"{path}.scales"]
    if weight.dtype != "U32" or len(weight.shape) != 2 or len(scales.shape) != 2 or scales.shape[1] == 0:
        raise CheckpointError(
            f"{file.path}: {path}.weight has scales but is {weight.dtype} {list(weight.shape)}, not packed integers."
        )
    group, group_rest = divmod(in_features, scales.shape[1])
    bits, bits_rest = divmod(weight.shape[1] * 32, in_features)
    if f"{path}.biases" in file:
        mode = "affine"
    elif scales.dtype == "U8":
        mode = {(32, 4): "mxfp4", (32, 8): "mxfp8", (16, 4): "nvfp4"}.get((group, bits), "")
    else:
        mode = ""
    if not mode or group_rest or bits_rest or bits not in (2, 3, 4, 5, 6, 8):
        raise CheckpointError(
            f"{file.path}: {path} is packed in an unknown way (weight {list(weight.shape)}, scales {list(scales.shape)} {scales.dtype}, "
            f"{in_features} inputs). Expected affine 2-8 bit, mxfp4, mxfp8 or nvfp4."
        )
    return Quantization(group, bits, mode)


def quantize_like(module: nn.Module, file: WeightsFile) -> dict[str, Quantization]:
    """Turn the layers that `file` stores packed into quantised ones, each as stored. Returns what was found by path."""
    found: dict[str, Quantization] = {}

    def predicate(path: str, layer: nn.Module):
        if not hasattr(layer, "to_quantized"):
            return False
        q = stored_quantization(file, path, layer.weight.shape[-1])
        if q is None:
            return False
        found[path] = q
        return {"group_size": q.group_size, "bits": q.bits, "mode": q.mode}

    nn.quantize(module, class_predicate=predicate)
    return found


def quantize_as(module: nn.Module, packing: Mapping[str, Quantization]) -> None:
    """Turn the layers of `packing` into quantised ones, which hold nothing yet."""

    def predicate(path: str, layer: nn.Module):
        q = packing.get(path)
        return False if q is None else {"group_size": q.group_size, "bits": q.bits, "mode": q.mode}

    nn.quantize(module, class_predicate=predicate)


def parameter_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in dict(tree_flatten(module.parameters())).items()}


def check_plan(
    module: nn.Module, plan: dict[str, Expr], file: WeightsFile, unused_ok: Callable[[str], bool] = lambda name: False
) -> None:
    """Every parameter has its tensors, of the right shape and kind, and every tensor is used."""
    used: set[str] = set()
    wanted = parameter_shapes(module)
    for name, expr in plan.items():
        sources = list(expr.sources())
        missing = [s for s in sources if s not in file]
        if missing:
            raise CheckpointError(_missing(file, [s for e in plan.values() for s in e.sources() if s not in file]))
        used.update(sources)
        shape = expr.shape(file.shape)
        if shape != wanted[name]:
            stored = ", ".join(f"{s} {list(file.shape(s))}" for s in sources)
            raise CheckpointError(
                f"{file.path}: {name} should have the shape {list(wanted[name])} by the configuration, found {list(shape)} ({stored}). "
                "The weights belong to another configuration."
            )
        for s in sources:
            packed = s.endswith(".weight") and f"{s.removesuffix('weight')}scales" in file
            int8 = f"{s}_scb" in file
            if file[s].dtype not in FLOATS and not (packed or int8 or s.endswith(".scales")):
                raise CheckpointError(f"{file.path}: {s} should hold floating-point values, found {file[s].dtype}.")
    unused = sorted(n for n in file if n not in used and not unused_ok(n))
    if unused:
        raise CheckpointError(
            f"{file.path} has {_count(len(unused), 'tensor')} that the configuration has no place for: {_some(unused)}. "
            "The weights belong to another configuration."
        )


def _missing(file: WeightsFile, names: list[str]) -> str:
    names = sorted(set(names))
    prefix = kinds.buried(file)
    where = "" if prefix is None else f" A model is there under {prefix}*, which not all of its tensors have."
    return f"{file.path} lacks {_count(len(names), 'tensor')} that the configuration asks for: {_some(names)}.{where}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _some(names: list[str]) -> str:
    return ", ".join(clean(n, 100) for n in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def fill(
    module: nn.Module,
    plan: dict[str, Expr],
    file: WeightsFile,
    dtype_of: Callable[[str, mx.Dtype], mx.Dtype],
    progress: Progress | None = None,
    strict: bool = True,
    packing: Mapping[str, Quantization] | None = None,
) -> None:
    """Read all parameters of a checked plan into `module`, cast, evaluated and looked through for NaN and norms of zeros.

    `dtype_of(parameter, stored type)` says what a floating-point parameter becomes. The weights of layers in `packing`, which are
    dense in the file and quantised in `module`, are packed one after the other, so that only one of them is ever there dense.
    """
    packing = packing or {}
    # Slices of one depth weight set share their arrays: one expression, one array.
    names: dict[Expr, list[str]] = {}
    for name, expr in plan.items():
        names.setdefault(expr, []).append(name)
    uses = Counter(s for expr in names for s in expr.sources())

    def get(source: str) -> mx.array:
        x = file.array(source)
        uses[source] -= 1
        if not uses[source]:
            # Nothing may keep the stored form alive beside the cast one.
            file.forget(source)
        return x

    group: list[_Made] = []
    total, done, pending = sum(_cost(e, file) for e in names), 0, 0
    parameters: list[tuple[str, mx.array]] = []
    for expr in sorted(names, key=lambda e: _position(e, file)):
        x = expr.build(get)
        kind = expr.kind(lambda s: file[s].dtype)
        q = packing.get(names[expr][0].removesuffix(".weight"))
        if q is not None:
            x = x.astype(_packed_from(names[expr][0], kind, file))
            parts = dict(zip(("weight", "scales", "biases"), pack(x, q), strict=False))
            parameters += [(f"{n.removesuffix('weight')}{part}", a) for n in names[expr] for part, a in parts.items()]
            group.append((names[expr][0], x, list(parts.values())))
        else:
            if x.dtype in _FLOAT_TYPES:
                x = x.astype(dtype_of(names[expr][0], MX_DTYPES.get(kind, x.dtype)))
            # A transposed view would be copied anew at every use.
            x = mx.contiguous(x)
            parameters += [(name, x) for name in names[expr]]
            group.append((names[expr][0], x, [x]))
        del x
        pending += _cost(expr, file)
        if pending >= GROUP_BYTES or q is not None:
            _finish_group(group, file)
            group, done, pending = [], done + pending, 0
            if q is not None:
                # Freed buffers of one dense weight seldom fit the next.
                mx.clear_cache()
            if progress:
                progress(done, total)
    _finish_group(group, file)
    if progress:
        progress(total, total)
    file.close()
    nn.Module.load_weights(module, parameters, strict=strict)


# Parameter, its values before any packing, and what is kept of them.
_Made = tuple[str, mx.array, list[mx.array]]


def _packed_from(name: str, kind: str, file: WeightsFile) -> mx.Dtype:
    """The type a dense weight is packed from, that of its scales: as stored; bfloat16 where a file holds less."""
    return mx.bfloat16 if is_int8(file) and not name.startswith(CONDITIONS) else kept_type(kind)


def _finish_group(group: list[_Made], file: WeightsFile) -> None:
    finite = {name: _is_finite(x) for name, x, _ in group if x.dtype in _FLOAT_TYPES and x.size}
    # No model has a norm that lets nothing through; a download that was given its whole size and not filled has.
    alive = {name: mx.any(x) for name, x, _ in group if _NORM_SCALE.search(name)}
    try:
        mx.eval([kept for *_, kept in group], list(finite.values()), list(alive.values()))
    except RuntimeError as e:
        raise CheckpointError(f"{file.path} cannot be read: {e}") from None
    bad = [name for name, ok in finite.items() if not ok.item()]
    if bad:
        raise CheckpointError(
            f"{file.path} holds NaN or infinite values in {_some(bad)}. The file is damaged; download it again."
        )
    empty = [name for name, ok in alive.items() if not ok.item()]
    if empty:
        raise CheckpointError(
            f"{file.path} holds nothing but zeros in {_some(empty)}. It was not downloaded whole; download it again."
        )


def _is_finite(x: mx.array) -> mx.array:
    """Whether `x` has no NaN and no infinity: numbers with all bits of the exponent set, the largest of either sign as integers."""
    whole, signed, infinity = _AS_INTEGERS[x.dtype]
    # Where there is another core, looked at there, while the next tensor is read.
    stream = device.spare_stream()
    positive = mx.max(mx.view(x, signed, stream=stream), stream=stream)
    negative = mx.max(mx.view(x, whole, stream=stream), stream=stream)
    sign = 1 << (8 * x.dtype.size - 1)
    return mx.logical_and(
        mx.less(positive, mx.array(infinity, signed), stream=stream),
        mx.less(negative, mx.array(sign | infinity, whole), stream=stream), stream=stream,
    )  # fmt: skip


def _cost(expr: Expr, file: WeightsFile) -> int:
    return sum(file[s].nbytes for s in expr.sources())


def _position(expr: Expr, file: WeightsFile) -> tuple[str, int]:
    """Order on disk, so that reading is sequential."""
    first = file[next(iter(expr.sources()))]
    return str(first.file), first.start


def describe(quantizations: Iterable[Quantization], dense: mx.Dtype) -> str:
    """Precision in words: the kinds of packing found, or the dense type."""
    kinds = sorted({str(q) for q in quantizations})
    return " + ".join(kinds) if kinds else str(dense).removeprefix("mlx.core.")
