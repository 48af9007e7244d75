"""Where every parameter of `models.lm_model.LmModel` is found in a file: MLX, PyTorch and Candle layouts (lm.md section 9)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from ...config.parts import LmConfig
from .expr import Expr, Int8, Reshape, Rows, Stored

Has = Callable[[str], bool]

_SLICE = re.compile(r"depformer\.slices\.(\d+)\.(.*)")
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.*)")


def detect(names: Collection[str]) -> str:
    """Layout of a file by its tensor names: mlx, pytorch or candle. Without a depth side the latter two are one."""
    if any(n.startswith(("audio_embs.", "depformer.slices.")) for n in names):
        return "mlx"
    if any(re.match(r"depformer\.\d+\.", n) for n in names):
        return "candle"
    if "out_norm.weight" in names and not any(n.startswith("emb.") for n in names):
        return "mlx"
    return "pytorch"


def depth_slices(names: Collection[str]) -> int:
    """Codebooks that the depth transformer of a file generates, told by its output projections."""
    heads = (re.match(r"(?:linears|depformer\.slices|depformer)\.(\d+)\.", n) for n in names)
    return max((int(m[1]) + 1 for m in heads if m), default=0)


def left_out(name: str, cfg: LmConfig) -> bool:
    """Whether a stored tensor belongs only to depth steps that `cfg` leaves out, in any layout."""
    dep = cfg.depformer
    if dep.stored_slices is None:
        return False
    for pattern, used in (
        (r"(?:linears|depformer_norms|depformer\.slices|depformer)\.(\d+)\.", range(dep.num_slices)),
        (r"depformer_emb\.(\d+)\.", range(dep.num_slices - 1)),
        (r"depformer_in\.(\d+)\.", dep.input_sets),
        (r"depformer\.layers\.\d+\.(?:gating|self_attn\.(?:in|out)_projs)\.(\d+)\.", dep.weight_sets),
    ):
        match = re.match(pattern, name)
        if match:
            return int(match[1]) not in used
    return False


def sources(parameters: Collection[str], cfg: LmConfig, names: Collection[str], layout: str) -> dict[str, Expr]:
    """Parameter name -> expression over the file's tensors. A parameter the file lacks maps to the name it should have."""
    has = set(names).__contains__
    if layout == "mlx":
        return {p: Stored(p) for p in parameters}
    find = _Pytorch(cfg, has) if layout == "pytorch" else _Candle(cfg, has)
    return {p: find(p) for p in parameters}


def any_of(has: Has, *names: str) -> Stored:
    """The first of several spellings that the file has; the last, which is the published one, if it has none."""
    return Stored(next((n for n in names if has(n)), names[-1]))


class _Pytorch:
    """PyTorch names. Depth attention is stacked per weight set, norms of depth layers are shared by all codebooks."""

    def __init__(self, cfg: LmConfig, has: Has):
        self.cfg, self.has = cfg, has
        # Sets of the file: more than are used where the last depth steps are left out.
        self.sets = len(cfg.depformer.feedforwards)

    def __call__(self, parameter: str) -> Expr:
        if match := _SLICE.match(parameter):
            return self.depth(int(match[1]), match[2])
        if match := _LAYER.match(parameter):
            return self.layer(f"transformer.layers.{match[1]}", match[2], 0, 1, None)
        if parameter.startswith("audio_embs."):
            return Stored("emb." + parameter.removeprefix("audio_embs."))
        if parameter == "out_norm.weight":
            return self.norm("out_norm")
        return self.linear(parameter)

    def norm(self, prefix: str) -> Expr:
        """RMS norms are stored as `alpha [1, 1, d]`, layer norms as `weight [d]`."""
        if self.has(f"{prefix}.weight"):
            return Stored(f"{prefix}.weight")
        return Reshape(Stored(f"{prefix}.alpha"), (-1,))

    def linear(self, name: str) -> Expr:
        """A tensor, or its int8 form where the file has row maxima for it."""
        scb = f"{name}_scb"
        return Int8(Stored(name), Stored(scb)) if self.has(scb) else Stored(name)

    def layer(self, prefix: str, rest: str, index: int, count: int, gating: int | None) -> Expr:
        """A parameter of one layer, for weight set `index` of `count`; `gating` is the set's MLP index, if it has one."""
        if rest.endswith("in_proj.weight"):
            return self.projection(f"{prefix}.{rest.removesuffix('in_proj.weight')}", "in", index, count)
        if rest.endswith("out_proj.weight"):
            return self.projection(f"{prefix}.{rest.removesuffix('out_proj.weight')}", "out", index, count)
        if rest in ("norm1.weight", "norm2.weight"):
            return self.norm(f"{prefix}.{rest.removesuffix('.weight')}")
        if rest.startswith("gating.linear1") or rest.startswith("gating.linear2"):
            return self.linear(f"{prefix}.{rest.removeprefix('gating.')}")
        if rest.startswith("gating.") and gating is not None:
            return self.linear(f"{prefix}.gating.{gating}.{rest.removeprefix('gating.')}")
        return self.linear(f"{prefix}.{rest}")

    def projection(self, prefix: str, side: str, index: int, count: int) -> Expr:
        """Attention projection: one tensor per weight set, or all sets stacked along the rows."""
        own = f"{prefix}{side}_projs.{index}.weight"
        if self.has(own):
            return self.linear(own)
        spellings = [f"{prefix}{side}_proj.weight"]
        if side == "in":
            spellings.append(f"{prefix}in_proj_weight")
        stacked = any_of(self.has, *spellings)
        if not self.has(f"{stacked.name}_scb"):
            return stacked if count == 1 else Rows(stacked, index, count)
        scale = Stored(f"{stacked.name}_scb")
        return Int8(Rows(stacked, index, count), Rows(scale, index, count))

    def depth(self, k: int, rest: str) -> Expr:
        dep = self.cfg.depformer
        if match := _LAYER.match(rest):
            w = dep.weight_sets[k]
            return self.layer(
                f"depformer.layers.{match[1]}", match[2], w, self.sets, w if dep.weights_per_step else None
            )
        if rest == "linear_in.weight":
            return self.linear(f"depformer_in.{dep.input_sets[k]}.weight")
        if rest.startswith("linear_out."):
            return self.linear(f"linears.{k}.{rest.removeprefix('linear_out.')}")
        if rest.startswith("norm."):
            return self.norm(f"depformer_norms.{k}") if rest == "norm.weight" else Stored(f"depformer_norms.{k}.bias")
        table = "depformer_text_emb" if k == 0 else f"depformer_emb.{k - 1}"
        return self.linear(f"{table}.{rest.removeprefix('emb.')}")


class _Candle(_Pytorch):
    """The MLX tree without `slices`, keeping PyTorch's spelling of projections and norms."""

    def depth(self, k: int, rest: str) -> Expr:
        if match := _LAYER.match(rest):
            return self.layer(f"depformer.{k}.transformer.layers.{match[1]}", match[2], 0, 1, None)
        if rest.startswith("norm."):
            return self.norm(f"depformer.{k}.norm") if rest == "norm.weight" else Stored(f"depformer.{k}.norm.bias")
        return self.linear(f"depformer.{k}.{rest}")
