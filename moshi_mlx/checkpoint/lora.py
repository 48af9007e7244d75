"""Low-rank adapters of moshi-finetune, applied while a checkpoint loads (family.md section 7).

A dense weight W becomes `W + scaling * B A`, merged in float32 and rounded once. A packed weight stays as it is and gets the product
`scaling * B (A x)` beside it: packing the sum again would round away much of what the adapter says. Full replacements
(embeddings of `ft_embed`) take the place of what they replace, packed or not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..config.input_files import file_size
from ..config.json_text import read_json
from ..config.parts import LmConfig
from ..errors import CheckpointError, InputError, quoted
from ..models.lm_model import LmModel
from ..modules.embedding import TokenEmbedding
from ..modules.matrix import Matrix
from .fill import parameter_shapes
from .layouts import lm as lm_layouts
from .layouts.expr import Expr, Reshape, Rows, Stored
from .weights_file import FLOATS, WeightsFile

FILE_NAME = "lora.safetensors"
# What tells a folder that holds an adapter: moshi-finetune's file, or one of the peft package, which is not read.
FILE_NAMES = (FILE_NAME, "adapter_model.safetensors")
DEFAULT_SCALING = 2.0
_A, _B, _FROZEN = ".lora_A.weight", ".lora_B.weight", ".frozen_W."


@dataclass(frozen=True)
class Pair:
    """The two factors of one weight: `a [r, in]`, `b [out, r]`, told by expressions over the adapter's file."""

    a: Expr
    b: Expr

    def delta(self, file: WeightsFile, scaling: float) -> mx.array:
        """`scaling * B A`, float32."""
        a, b = (x.build(file.array).astype(mx.float32) for x in (self.a, self.b))
        return scaling * (b @ a)


@dataclass(frozen=True)
class Merged(Expr):
    """A dense weight with its adapter's product added."""

    of: Expr
    pair: Pair
    adapter: Adapter

    def sources(self) -> Iterator[str]:
        return self.of.sources()

    def shape(self, shapes):
        return self.of.shape(shapes)

    def build(self, get) -> mx.array:
        return self.of.build(get).astype(mx.float32) + self.pair.delta(self.adapter.file, self.adapter.scaling)


@dataclass(frozen=True)
class Replaced(Expr):
    """A tensor of the adapter in place of one of the checkpoint, which has to be there all the same."""

    of: Expr
    by: Expr
    adapter: Adapter

    def sources(self) -> Iterator[str]:
        return self.of.sources()

    def shape(self, shapes):
        return self.by.shape(self.adapter.file.shape)

    def build(self, get) -> mx.array:
        return self.by.build(self.adapter.file.array)


class AdaptedLinear(nn.Module):
    """A packed linear layer with a low-rank product beside it: `linear(x) + B (A x)`, the scaling being part of B."""

    def __init__(self, linear: nn.Module, a: mx.array, b: mx.array):
        super().__init__()
        self.linear, self.lora_a, self.lora_b = linear, a, b

    def __call__(self, x: mx.array) -> mx.array:
        low = (x @ self.lora_a.T) @ self.lora_b.T
        return self.linear(x) + low.astype(x.dtype)


class Adapter:
    """An adapter file, checked against a model's configuration before anything is read.

    `scaling` multiplies the product as it is; it is not divided by the rank.
    """

    def __init__(self, path: str | Path, cfg: LmConfig, scaling: float):
        if not math.isfinite(scaling):
            raise InputError(f"the scale of an adapter should be a finite number, found {scaling}.")
        self.path, self.scaling = Path(path), scaling
        self.file = WeightsFile(self.path)
        self.pairs, self.replacements = self._find(cfg)
        # Dense weights of the last plan: what is packed of them later has the adapter in it.
        self._merged: set[str] = set()

    def _find(self, cfg: LmConfig) -> tuple[dict[str, Pair], dict[str, Expr]]:
        """Pairs and replacements by our parameter names; every tensor of the file has to belong to one."""
        parameters = parameter_shapes(LmModel(cfg))
        names = set(self.file)
        for name in sorted(names):
            other = name.replace(_A, _B) if name.endswith(_A) else name.replace(_B, _A) if name.endswith(_B) else name
            if other not in names:
                raise CheckpointError(f"{self.path} has {name} without {other}.")
            if self.file[name].dtype not in FLOATS:
                raise CheckpointError(
                    f"{self.path}: {name} should hold floating-point values, found {self.file[name].dtype}."
                )
        adapted = {name.removesuffix(_A) + ".weight" for name in names if name.endswith(_A)}
        # An adapted layer of a replaced embedding keeps its own weight under another name.
        whole = {name.replace(_FROZEN, "."): name for name in names if not name.endswith((_A, _B))}
        pairs: dict[str, Pair] = {}
        replacements: dict[str, Expr] = {}
        used: set[str] = set()
        for parameter, expr in lm_layouts.sources(list(parameters), cfg, adapted | whole.keys(), "pytorch").items():
            sources, wanted = set(expr.sources()), parameters[parameter]
            if sources <= whole.keys():
                replacements[parameter] = self._checked(parameter, _renamed(expr, whole.__getitem__), wanted)
                used |= {whole[s] for s in sources}
            if sources <= adapted:
                pair = Pair(_renamed(expr, partial(_factor_name, _A)), _renamed(expr, partial(_factor_name, _B)))
                self._check_pair(parameter, pair, wanted)
                pairs[parameter] = pair
                used |= {s.removesuffix(".weight") + end for s in sources for end in (_A, _B)}
        unknown = sorted(
            n for n in names - used if not lm_layouts.left_out(n.replace(_A, ".weight").replace(_B, ".weight"), cfg)
        )
        if unknown:
            raise CheckpointError(
                f"{self.path} has {len(unknown)} tensors that this model has no place for, {unknown[0]} among them. "
                "The adapter belongs to another model."
            )
        return pairs, replacements

    def _checked(self, parameter: str, expr: Expr, wanted: tuple[int, ...]) -> Expr:
        shape = expr.shape(self.file.shape)
        if shape != wanted:
            raise CheckpointError(
                f"{self.path}: {parameter} should have the shape {list(wanted)}, found {list(shape)}. "
                "The adapter belongs to another model."
            )
        return expr

    def _check_pair(self, parameter: str, pair: Pair, wanted: tuple[int, ...]) -> None:
        a, b = pair.a.shape(self.file.shape), pair.b.shape(self.file.shape)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != wanted:
            raise CheckpointError(
                f"{self.path}: the factors of {parameter} have the shapes {list(a)} and {list(b)}, which do not make "
                f"{list(wanted)}. The adapter belongs to another model."
            )

    @property
    def rank(self) -> int:
        """The largest rank of a pair."""
        return max((p.a.shape(self.file.shape)[0] for p in self.pairs.values()), default=0)

    @property
    def nbytes(self) -> int:
        return self.file.nbytes

    def plan(self, plan: Mapping[str, Expr]) -> dict[str, Expr]:
        """A loading plan with everything dense adapted; packed weights are left for `attach`."""
        out = dict(plan)
        self._merged.clear()
        for parameter, expr in plan.items():
            if f"{parameter.removesuffix('weight')}scales" in plan:
                continue
            if parameter in self.replacements:
                expr = out[parameter] = Replaced(expr, self.replacements[parameter], self)
            if parameter in self.pairs:
                out[parameter] = Merged(expr, self.pairs[parameter], self)
            self._merged.add(parameter)
        return out

    def attach(self, lm: nn.Module, dtype: mx.Dtype) -> None:
        """Adapt what `lm` holds packed, once it is loaded."""
        modules = dict(lm.named_modules())
        changes: list[tuple[str, nn.Module]] = []
        # Slices of one depth set share their arrays, before and after.
        done: dict[tuple[int, Expr | None, Pair | None], nn.Module] = {}
        for parameter in sorted(self.pairs.keys() | self.replacements.keys()):
            path, _, leaf = parameter.rpartition(".")
            module = modules[path]
            if leaf != "weight" or module.get("scales") is None or parameter in self._merged:
                continue
            by, pair = self.replacements.get(parameter), self.pairs.get(parameter)
            key = (id(module.weight), by, pair)
            if key not in done:
                done[key] = self._adapted(path, module, by, pair, dtype)
                mx.eval(done[key].parameters())
            changes.append((path, done[key]))
        lm.update_modules(tree_unflatten(changes))
        self.file.close()

    def _adapted(self, path: str, module: nn.Module, by: Expr | None, pair: Pair | None, dtype: mx.Dtype) -> nn.Module:
        """What takes the place of one packed module: a dense one, or itself with a product beside it."""
        if by is not None or _READ_DIRECTLY.search(path):
            whole = Matrix.of(module).rows(mx.arange(module.weight.shape[0]), mx.float32)
            weight = whole if by is None else by.build(self.file.array)
            return _dense(module, weight if pair is None else weight + pair.delta(self.file, self.scaling), dtype)
        assert pair is not None
        a, b = (x.build(self.file.array).astype(mx.float32) for x in (pair.a, pair.b))
        return AdaptedLinear(module, a.astype(dtype), (self.scaling * b).astype(dtype))


# Small layers whose numbers are used by more than their own call: stacked with others, or in part. They become dense.
_READ_DIRECTLY = re.compile(r"^depformer\.slices\.\d+\.linear_in$|\.cross_attention\.in_proj$")


def _dense(module: nn.Module, weight: mx.array, dtype: mx.Dtype) -> nn.Module:
    rows, columns = weight.shape
    new = (
        nn.Linear(columns, rows, bias=False)
        if isinstance(module, nn.QuantizedLinear)
        else TokenEmbedding(rows, columns)
    )
    new.weight = weight.astype(dtype)
    return new


def _renamed(expr: Expr, name_of: Callable[[str], str]) -> Expr:
    """The expression of a weight over other tensors. Where weight sets are stacked, so are the rows of their factors."""
    if isinstance(expr, Rows):
        return Rows(_renamed(expr.of, name_of), expr.index, expr.count)
    if isinstance(expr, Reshape):
        return Reshape(_renamed(expr.of, name_of), expr.to)
    assert isinstance(expr, Stored), expr
    return Stored(name_of(expr.name))


def _factor_name(ending: str, weight: str) -> str:
    return weight.removesuffix(".weight") + ending


def find_file(path: str | Path) -> Path:
    """An adapter's file: itself, or the one in its folder."""
    path = Path(path).expanduser()
    file = path / FILE_NAME if path.is_dir() else path
    if not file.exists():
        raise CheckpointError(f"the adapter {file} does not exist.")
    file_size(file)
    return file


def scaling_of(file: Path, default: float) -> float:
    """`lora_scaling` of the configuration that moshi-finetune writes beside an adapter, else `default`."""
    config = file.with_name("config.json")
    value = read_json(config).get("lora_scaling", default) if config.exists() else default
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CheckpointError(f"{config}: 'lora_scaling' should be a number, found {quoted(value)}.")
    return float(value)
