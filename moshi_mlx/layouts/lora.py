"""LoRA adapters of moshi-finetune over the parameters of `models.lm.Lm` (family.md 7).

An adapter names the linear layers of the PyTorch model, one per weight set; older files stack the sets of an attention
projection along the rows. With `ft_embed` it also holds whole tensors that replace the base's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from ..config import LmConfig
from .expr import Expr, LowRank, Rows, Stored, substitute
from .lm import sources as kyutai_sources

_SET = re.compile(r"_projs\.(\d+)$")


def is_adapter(names: Collection[str]) -> bool:
    return any(".lora_A." in n for n in names)


def merged(
    plan: Mapping[str, Expr], cfg: LmConfig, names: Collection[str], scale: float, prefix: str
) -> tuple[dict[str, Expr], set[str]]:
    """`plan` with an adapter of tensors `names` merged in, and the names it used.

    `scale` multiplies B A as it is, whatever the rank. Expressions name the adapter's tensors with `prefix` in front.
    """
    adapter = set(names)
    # The names that the PyTorch model itself has, with one projection per weight set.
    published = kyutai_sources(plan, cfg, _projections(cfg), "pytorch")
    out: dict[str, Expr] = {}
    used: set[str] = set()
    for parameter, base in plan.items():
        expr = published[parameter]
        whole = list(expr.sources())
        if adapter.issuperset(whole):
            out[parameter] = substitute(expr, {n: Stored(prefix + n) for n in whole})
            used.update(whole)
            continue
        down, up = _pair(whole[0].removesuffix(".weight"), adapter, cfg)
        if down is None or up is None:
            out[parameter] = base
            continue
        found = [*down.sources(), *up.sources()]
        used.update(found)
        in_file = {n: Stored(prefix + n) for n in found}
        out[parameter] = LowRank(base, substitute(down, in_file), substitute(up, in_file), scale)
    return out, used


def _projections(cfg: LmConfig) -> set[str]:
    """Attention projections of a PyTorch model, which has one per weight set."""
    sets = max(cfg.depformer.weight_sets, default=-1) + 1
    trunk, depth = cfg.transformer.num_layers, cfg.depformer.transformer.num_layers
    blocks = [(f"transformer.layers.{i}.{kind}", 1) for i in range(trunk) for kind in ("self_attn", "cross_attention")]
    blocks += [(f"depformer.layers.{i}.self_attn", sets) for i in range(depth)]
    return {f"{block}.{side}_projs.{w}.weight" for block, n in blocks for side in ("in", "out") for w in range(n)}


def _pair(path: str, adapter: set[str], cfg: LmConfig) -> tuple[Expr | None, Expr | None]:
    """The two factors of the linear layer at `path`, or None where the adapter leaves it alone."""
    down, up = f"{path}.lora_A.weight", f"{path}.lora_B.weight"
    if down in adapter and up in adapter:
        return Stored(down), Stored(up)
    match = _SET.search(path)
    if match is None:
        return None, None
    stacked = path[: match.start()] + "_proj"
    down, up = f"{stacked}.lora_A.weight", f"{stacked}.lora_B.weight"
    if down not in adapter or up not in adapter:
        return None, None
    sets = max(cfg.depformer.weight_sets, default=0) + 1 if path.startswith("depformer.") else 1
    index = int(match[1])
    return Rows(Stored(down), index, sets), Rows(Stored(up), index, sets)
