"""Recipes from JSON files, what every recipe has to keep to, and the names of what is made by one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.checkpoint.recipe_table import BITS, FLOAT_FORMS, GROUP_SIZES, PUBLISHED, RECIPES
from moshi_mlx.checkpoint.recipes import Packing
from moshi_mlx.config import LmConfig
from moshi_mlx.config.json_text import read_json
from moshi_mlx.errors import ConfigError, InputError, quoted


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
        or (rule.get("mode", "affine") not in ("affine", *FLOAT_FORMS))
        or not isinstance(rule.get("dense", False), bool)
    )
    if wrong:
        raise ConfigError(
            f"{path}: bits should be one of {BITS}, 'group_size' (with 'bits') one of {GROUP_SIZES}, 'mode' affine, "
            f"{', '.join(FLOAT_FORMS)}, 'dense' true or false; found {quoted(rule)}."
        )


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


def file_name(packing: Packing, recipe: str) -> str:
    """Published names for what is packed as published; others never look like those, whose readers trust the name."""
    kinds = set(packing.layers.values())
    if len(kinds) == 1 and not packing.kept:
        (q,) = kinds
        if q.mode == "affine" and PUBLISHED.get(q.bits) == q.group_size:
            return f"model.q{q.bits}.safetensors"
        return f"model.{q.mode if q.mode != 'affine' else f'q{q.bits}-g{q.group_size}'}.safetensors"
    lowest = min(q.bits for q in kinds)
    name = recipe if recipe in RECIPES else Path(recipe).stem
    return f"model.q{lowest}-{re.sub(r'[^A-Za-z0-9-]', '-', name)}.safetensors"
