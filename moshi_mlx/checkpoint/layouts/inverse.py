"""The tensors of a file made from a model's parameters: a plan for reading that file, turned round.

Writing follows from reading, so that the two cannot disagree: a parameter that is part of a stored tensor becomes that part
of it, and one that several parameters are read from is written once, after a check that they are the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from ...config.parts import LmConfig
from .expr import Concat, Expr, Filled, Index, Pairs, Reshape, Rows, Same, Slice, Stack, Stored
from .lm import sources as kyutai_sources
from .transformers_lm import sources as transformers_sources

# Rows of the parts that a parameter is concatenated from.
RowsOf = Callable[[str], tuple[int, ...]]
# How a value lies in a stored tensor: ("rows", i, n), ("index", i, n), ("slice", start, stop) or ("whole", 0, 1).
_Place = tuple[str, int, int]


def inverse(plan: Mapping[str, Expr], rows_of: RowsOf) -> dict[str, Expr]:
    """Stored name -> expression over parameter names, from parameter name -> expression over stored names."""
    pieces: dict[str, dict[_Place, list[Expr]]] = defaultdict(lambda: defaultdict(list))
    for parameter, expr in plan.items():
        _assign(expr, Stored(parameter), pieces, rows_of(parameter))
    return {name: _assemble(found) for name, found in pieces.items()}


def _assign(expr: Expr, value: Expr, pieces: dict, rows: tuple[int, ...]) -> None:
    """Note in `pieces` where `value` belongs if `expr` is how it is read."""
    if isinstance(expr, Reshape):
        # Norms, stored as [1, 1, d].
        _assign(expr.of, Reshape(value, (1, 1, -1)), pieces, rows)
    elif isinstance(expr, Pairs):
        _assign(expr.of, Pairs(value, expr.heads, not expr.to_halves), pieces, rows)
    elif isinstance(expr, Concat):
        start = 0
        for part, count in zip(expr.parts, rows, strict=True):
            _assign(part, Slice(value, start, start + count), pieces, rows)
            start += count
    elif isinstance(expr, Rows):
        pieces[_stored(expr.of)]["rows", expr.index, expr.count].append(value)
    elif isinstance(expr, Index):
        pieces[_stored(expr.of)]["index", expr.index, expr.count].append(value)
    elif isinstance(expr, Slice):
        pieces[_stored(expr.of)]["slice", expr.start, expr.stop].append(value)
    else:
        pieces[_stored(expr)]["whole", 0, 1].append(value)


def _stored(expr: Expr) -> str:
    assert isinstance(expr, Stored), expr
    return expr.name


def _assemble(found: dict[_Place, list[Expr]]) -> Expr:
    """One stored tensor from its pieces, in order."""
    parts = tuple(
        values[0] if len(values) == 1 else Same(tuple(values))
        for _, values in sorted(found.items(), key=lambda i: i[0])
    )
    kinds = {kind for kind, _, _ in found}
    assert len(kinds) == 1, found
    if "whole" in kinds:
        return parts[0]
    return Stack(parts) if "index" in kinds else Concat(parts)


def pytorch_file(parameters: Mapping[str, tuple[int, ...]], cfg: LmConfig) -> dict[str, Expr]:
    """The published PyTorch layout (lm.md 9.1) over our parameters, whose shapes are `parameters`."""

    return inverse(kyutai_sources(parameters, cfg, _layer_norms(cfg), "pytorch"), lambda parameter: ())


def _layer_norms(cfg: LmConfig) -> set[str]:
    """Stored names of layer norms, which keep `weight`; where a name is not among them, the reader assumes an RMS `alpha`."""
    names: set[str] = set()
    if cfg.transformer.norm.startswith("layer_norm"):
        stacks = (("transformer", cfg.transformer), ("depformer", cfg.depformer.transformer))
        names = {f"{s}.layers.{i}.norm{n}.weight" for s, t in stacks for i in range(t.num_layers) for n in (1, 2)}
        names.add("out_norm.weight")
    if (cfg.depformer.norm or "").startswith("layer_norm"):
        names |= {f"depformer_norms.{k}.weight" for k in range(cfg.dep_q)}
    return names


def transformers_file(parameters: Mapping[str, tuple[int, ...]], cfg: LmConfig, architecture: str) -> dict[str, Expr]:
    """A file of transformers for one of `transformers_lm.FAMILIES` over our parameters."""
    # With an output head of its own, also where a source tied it to the table.
    plan = transformers_sources(parameters, cfg, {"lm_head.weight"}, architecture)
    file = inverse(plan, lambda parameter: _parts(cfg, parameter))
    if architecture == "kyutai_speech_to_text":
        dim, text = cfg.transformer.d_model, Stored("text_emb.weight")
        # One row for padding, and a head as long as the text table.
        table, head = "model.embed_tokens.embed_tokens.weight", "lm_head.weight"
        file[table] = _with_zero_rows(file[table], 1, dim, text)
        file[head] = _with_zero_rows(file[head], cfg.text_in_vocab_size - cfg.text_out_vocab_size, dim, text)
    return file


def _with_zero_rows(expr: Expr, count: int, dim: int, like: Expr) -> Expr:
    return Concat((expr, Filled((count, dim), 0.0, like))) if count else expr


def _parts(cfg: LmConfig, parameter: str) -> tuple[int, ...]:
    """Rows of queries, keys and values, or of the two halves of a gate."""
    depth = parameter.startswith("depformer.slices.")
    stack = cfg.depformer.slice_transformer(int(parameter.split(".")[2])) if depth else cfg.transformer
    if parameter.endswith("self_attn.in_proj.weight"):
        kv = stack.kv_heads * stack.head_dim
        return (stack.num_heads * stack.head_dim, kv, kv)
    return (stack.hidden, stack.hidden)
