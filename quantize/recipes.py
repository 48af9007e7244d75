"""Recipes: which layers are packed, and how. Data, by name or from a JSON file; the kinds of packing that MLX has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

from moshi_mlx.checkpoint.fill import Quantization
from moshi_mlx.config import LmConfig
from moshi_mlx.config.json_text import read_json
from moshi_mlx.errors import ConfigError, InputError, quoted
from moshi_mlx.models.lm_model import LmModel

BITS = (2, 3, 4, 5, 6, 8)
BITS_IN_WORDS = "2, 3, 4, 5, 6 or 8 (published: 4 and 8)"
GROUP_SIZES = (32, 64, 128)
# As published: 4 bits in groups of 32, 8 bits in groups of 64.
PUBLISHED = {4: 32, 8: 64}
DEFAULT_GROUP_SIZES = {2: 32, 3: 32, 4: 32, 5: 64, 6: 64, 8: 64}
# Float kinds have one form each.
FLOAT_MODES = {
    "mxfp4": Quantization(32, 4, "mxfp4"),
    "mxfp8": Quantization(32, 8, "mxfp8"),
    "nvfp4": Quantization(16, 4, "nvfp4"),
}
MIXED = "mixed"

_TABLES = r"text_emb|audio_embs\.\d+|depformer\.slices\.\d+\.emb"
_HEADS = r"text_linear|depformer\.slices\.\d+\.linear_out|extra_heads\.\d+"
# First rule that matches a layer's path decides; a layer that none matches has the packing asked for. `mixed` is measured.
RECIPES: dict[str, list[dict[str, Any]]] = {
    "uniform": [],
    "heads-bf16": [{"layers": rf"({_TABLES}|{_HEADS})(\.|$)", "dense": True}],
    MIXED: [],
}


@dataclass(frozen=True)
class Packing:
    """How every layer that can be packed is: `layers` by path, `dense` those that are left as they are."""

    layers: dict[str, Quantization]
    dense: list[str] = field(default_factory=list)


def base(bits: int | None, group_size: int | None, mode: str) -> Quantization:
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
    modules = tree_flatten(LmModel(cfg).leaf_modules(), is_leaf=nn.Module.is_module)
    return {path: tuple(m.weight.shape) for path, m in modules if hasattr(m, "to_quantized")}


def by_rules(layers: Mapping[str, tuple[int, int]], rules: list[dict[str, Any]], usual: Quantization) -> Packing:
    """Apply a recipe. Layers whose inputs do not fill whole groups stay dense."""
    packed: dict[str, Quantization] = {}
    dense: list[str] = []
    for path, (_, inputs) in layers.items():
        rule = next((r for r in rules if re.match(r["layers"], path)), {})
        q = None if rule.get("dense") else _of_rule(rule, usual)
        if q is None or not fits(inputs, q):
            dense.append(path)
        else:
            packed[path] = q
    if not packed:
        raise InputError(
            f"no layer of this model can be packed in groups of {usual.group_size}; choose a smaller --group-size."
        )
    return Packing(packed, dense)


def check_shared(packing: Packing, cfg: LmConfig) -> None:
    """Codebooks that share depth weights have to share their packing too."""
    dep = cfg.depformer
    seen: dict[tuple[int, str], tuple[str, Quantization | None]] = {}
    for path in [*packing.layers, *packing.dense]:
        match = re.match(r"depformer\.slices\.(\d+)\.(transformer\..*|linear_in)$", path)
        if match is None:
            continue
        k, rest = int(match[1]), match[2]
        w = dep.input_sets[k] if rest == "linear_in" else dep.weight_sets[k]
        first, q = seen.setdefault((w, rest), (path, packing.layers.get(path)))
        if q != packing.layers.get(path):
            raise InputError(f"{first} and {path} are the same weights; the recipe should pack them alike.")


def fits(inputs: int, q: Quantization) -> bool:
    return inputs % q.group_size == 0


def _of_rule(rule: dict[str, Any], usual: Quantization) -> Quantization:
    if "mode" in rule and rule["mode"] != "affine":
        return FLOAT_MODES[rule["mode"]]
    if "bits" not in rule:
        return usual
    return Quantization(rule.get("group_size", DEFAULT_GROUP_SIZES[rule["bits"]]), rule["bits"])


def read_recipe(name: str) -> list[dict[str, Any]]:
    """Rules of a recipe by name, or of a JSON file `{"rules": [{"layers": REGEX, "bits": 8}, {"layers": REGEX, "dense": true}]}`."""
    if name in RECIPES:
        return RECIPES[name]
    path = Path(name)
    if path.suffix != ".json":
        raise InputError(f"there is no recipe {name!r}; known: {', '.join(RECIPES)}, or a JSON file of rules.")
    rules = read_json(path).get("rules")
    if not isinstance(rules, list):
        raise ConfigError(f"{path} should have 'rules', a list of objects.")
    for rule in rules:
        _check_rule(path, rule)
    return rules


def _check_rule(path: Path, rule: Any) -> None:
    known = {"layers", "bits", "group_size", "mode", "dense"}
    if not isinstance(rule, dict) or not isinstance(rule.get("layers"), str) or not set(rule) <= known:
        raise ConfigError(
            f"{path}: a rule should have 'layers' and of {', '.join(sorted(known - {'layers'}))}, found {quoted(rule)}."
        )
    try:
        re.compile(rule["layers"])
    except re.error as e:
        raise ConfigError(f"{path}: {quoted(rule['layers'])} is not a regular expression: {e}.") from None
    wrong = (
        ("bits" in rule and rule["bits"] not in BITS)
        or ("group_size" in rule and (rule["group_size"] not in GROUP_SIZES or "bits" not in rule))
        or (rule.get("mode", "affine") not in ("affine", *FLOAT_MODES))
        or not isinstance(rule.get("dense", False), bool)
    )
    if wrong:
        raise ConfigError(
            f"{path}: bits should be one of {BITS}, 'group_size' (with 'bits') one of {GROUP_SIZES}, 'mode' affine, "
            f"{', '.join(FLOAT_MODES)}, 'dense' true or false; found {quoted(rule)}."
        )


def file_name(packing: Packing, recipe: str) -> str:
    """Published names for what is packed as published; others never look like those, whose readers trust the name."""
    kinds = set(packing.layers.values())
    if recipe == "uniform" and len(kinds) == 1:
        (q,) = kinds
        if q.mode == "affine" and PUBLISHED.get(q.bits) == q.group_size:
            return f"model.q{q.bits}.safetensors"
        return f"model.{q.mode if q.mode != 'affine' else f'q{q.bits}-g{q.group_size}'}.safetensors"
    lowest = min(q.bits for q in kinds)
    name = recipe if recipe in RECIPES else Path(recipe).stem
    return f"model.q{lowest}-{re.sub(r'[^A-Za-z0-9-]', '-', name)}.safetensors"


def packed_bytes(shape: tuple[int, int], q: Quantization | None, dense_item: int = 2) -> int:
    """Bytes of a layer, scales and biases included."""
    rows, inputs = shape
    if q is None:
        return rows * inputs * dense_item
    groups = inputs // q.group_size
    scales = groups * 2 * dense_item if q.mode == "affine" else groups
    return rows * (inputs * q.bits // 8 + scales)
