"""Recipes applied: which layers of a model are packed, and how. The recipes themselves are `recipe_table`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config import CheckpointConfig, LmConfig
from ..errors import InputError
from ..models.lm_model import LmModel
from .packing import Quantization
from .recipe_table import BITS, BITS_IN_WORDS, BY_KIND, DEFAULT_GROUP_SIZES, FLOAT_FORMS, GROUP_SIZES, UNIFORM

FLOAT_MODES = {mode: Quantization(*form, mode) for mode, form in FLOAT_FORMS.items()}


@dataclass(frozen=True)
class Packing:
    """How every layer that can be packed is: `layers` by path, `dense` those that are left as they are; `kept` says that some of
    these would fill whole groups and are left by the recipe.
    """

    layers: dict[str, Quantization]
    dense: list[str] = field(default_factory=list)
    kept: bool = False


def default_recipe(config: CheckpointConfig) -> str:
    """Name of the recipe that keeps what the speech of a kind of model hangs on."""
    return BY_KIND.get(config.kind, UNIFORM)


def base(bits: int | None, group_size: int | None = None, mode: str = "affine") -> Quantization:
    """The packing that the flags ask for. Raises `InputError` for one that MLX does not have."""
    if mode != "affine":
        known = FLOAT_MODES[mode]
        if (bits or known.bits, group_size or known.group_size) != (known.bits, known.group_size):
            raise InputError(
                f"--mode {mode} is {known.bits} bits in groups of {known.group_size}; leave out -q and --group-size."
            )
        return known
    if bits is None:
        raise InputError(f"say how many bits: -q {BITS_IN_WORDS}; or a float --mode.")
    if bits not in BITS:
        raise InputError(f"MLX does not pack into {bits} bits; -q should be {BITS_IN_WORDS}.")
    if group_size is not None and group_size not in GROUP_SIZES:
        raise InputError(f"MLX has no groups of {group_size}; --group-size should be 32, 64 or 128.")
    return Quantization(group_size or DEFAULT_GROUP_SIZES[bits], bits)


def layers_of(cfg: LmConfig) -> dict[str, tuple[int, int]]:
    """Path -> (rows, inputs) of every layer that `nn.quantize` would pack: linear layers and plain tables."""
    modules: Any = tree_flatten(LmModel(cfg).leaf_modules(), is_leaf=nn.Module.is_module)
    return {path: tuple(m.weight.shape) for path, m in modules if hasattr(m, "to_quantized")}


def by_rules(layers: Mapping[str, tuple[int, int]], rules: Sequence[Mapping[str, Any]], usual: Quantization) -> Packing:
    """Apply a recipe. Layers whose inputs do not fill whole groups stay dense."""
    packed: dict[str, Quantization] = {}
    dense: list[str] = []
    kept = False
    for path, (_, inputs) in layers.items():
        rule = next((r for r in rules if re.match(r["layers"], path)), {})
        q = None if rule.get("dense") else _of_rule(rule, usual)
        if q is None or inputs % q.group_size:
            dense.append(path)
            kept = kept or (q is None and inputs % usual.group_size == 0)
        else:
            packed[path] = q
    if not packed:
        raise InputError(
            f"no layer of this model can be packed in groups of {usual.group_size}; choose a smaller --group-size."
        )
    return Packing(packed, dense, kept)


def _of_rule(rule: Mapping[str, Any], usual: Quantization) -> Quantization:
    if "mode" in rule and rule["mode"] != "affine":
        return FLOAT_MODES[rule["mode"]]
    if "bits" not in rule:
        return usual
    return Quantization(rule.get("group_size", DEFAULT_GROUP_SIZES[rule["bits"]]), rule["bits"])
