"""Codec files in one layout made from another, tensor by tensor and without loss (mimi.md 8).

`mimi` says what the model's parameters are made of; that direction forgets (a codebook entry is a quotient of two stored
tensors), so files are rewritten here from name to name. The canonical file is Kyutai's.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from ...config.parts import MimiConfig
from .expr import Concat, Expr, Filled, Pairs, Slice, Stored, WeightNorm
from .mimi import sources

# Spellings of older or newer PyTorch code -> the published one.
_SPELLINGS = (
    (re.compile(r"self_attn\.in_projs\.0\.weight$|self_attn\.in_proj\.weight$"), "self_attn.in_proj_weight"),
    (re.compile(r"self_attn\.out_projs\.0\.weight$"), "self_attn.out_proj.weight"),
    (re.compile(r"_codebook\.inited$"), "_codebook._initialized"),
    (re.compile(r"_codebook\.cluster_size$"), "_codebook.cluster_usage"),
    (re.compile(r"_codebook\.(embed_sum|embed_avg)$"), "_codebook.embedding_sum"),
)
_IN_PROJ = ".self_attn.in_proj.weight"
_INITIALIZED = {"kyutai": "_codebook._initialized", "transformers": "codebook.initialized"}
_USAGE = re.compile(r"_?codebook\.cluster_usage$")


def kyutai_file(names: Collection[str]) -> dict[str, Expr]:
    """Kyutai's published names over a file of any Kyutai spelling; weight-normalised kernels are folded."""
    plan: dict[str, Expr] = {}
    for name in names:
        if name.endswith(".weight_g"):
            continue
        if name.endswith(".weight_v"):
            prefix = name.removesuffix("_v")
            plan[prefix] = WeightNorm(Stored(f"{prefix}_g"), Stored(name))
            continue
        published = name
        for pattern, replacement in _SPELLINGS:
            published = pattern.sub(replacement, published)
        plan[published] = Stored(name)
    return plan


def _paired(cfg: MimiConfig, parameters: Collection[str], transposed: Collection[str]):
    """Per parameter, its expressions over a published Kyutai file and over a file of transformers."""
    kyutai = sources(parameters, cfg, (), "kyutai", transposed)
    other = sources(parameters, cfg, (), "transformers", transposed)
    for parameter in parameters:
        yield parameter, kyutai[parameter], other[parameter]


def kyutai_from_transformers(
    cfg: MimiConfig, parameters: Collection[str], transposed: Collection[str], names: Collection[str]
) -> dict[str, Expr]:
    """A Kyutai file over the tensors `names` of a file of transformers."""
    plan: dict[str, Expr] = {}
    for parameter, ours, theirs in _paired(cfg, parameters, transposed):
        if parameter.endswith(_IN_PROJ):
            plan[next(ours.sources())] = theirs
        else:
            plan.update(zip(ours.sources(), map(Stored, theirs.sources()), strict=True))
    return plan | _initialized(plan, set(names), "transformers", "kyutai")


def transformers_from_kyutai(
    cfg: MimiConfig, parameters: Collection[str], transposed: Collection[str], names: Collection[str]
) -> dict[str, Expr]:
    """A file of transformers over the tensors `names` of a published Kyutai file."""
    plan: dict[str, Expr] = {}
    stack = cfg.transformer
    q_rows, kv_rows = stack.num_heads * stack.head_dim, stack.kv_heads * stack.head_dim
    for parameter, ours, theirs in _paired(cfg, parameters, transposed):
        if not parameter.endswith(_IN_PROJ):
            plan.update(zip(theirs.sources(), map(Stored, ours.sources()), strict=True))
            continue
        assert isinstance(theirs, Concat)
        q, k, v = theirs.sources()
        packed = Stored(next(ours.sources()))
        plan[q] = Pairs(Slice(packed, 0, q_rows), stack.num_heads, True)
        plan[k] = Pairs(Slice(packed, q_rows, q_rows + kv_rows), stack.kv_heads, True)
        plan[v] = Slice(packed, q_rows + kv_rows, q_rows + 2 * kv_rows)
    return plan | _initialized(plan, set(names), "kyutai", "transformers")


def _initialized(plan: dict[str, Expr], names: set[str], source: str, target: str) -> dict[str, Expr]:
    """The training flags of the codebooks, which both originals ask for: as stored, or set where a file lacks them."""
    flags: dict[str, Expr] = {}
    for name, usage in plan.items():
        if not _USAGE.search(name):
            continue
        stored = _USAGE.sub(_INITIALIZED[source], next(usage.sources()))
        flag = Stored(stored) if stored in names else Filled((1,), 1.0, usage)
        flags[_USAGE.sub(_INITIALIZED[target], name)] = flag
    return flags
