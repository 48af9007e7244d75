"""`config.json` of a made folder: what the model is, which files it has, how they are packed and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.config import LmConfig
from moshi_mlx.config.description import CheckpointConfig

from .language_model import LanguageModel
from .source import Source

CODEC_CONFIG = "mimi.json"


def config_file(
    source: Source, model: LanguageModel, weights: str, quantization: dict[str, Any] | None, layout: str
) -> dict[str, Any]:
    """`config.json`. That of the MLX layout spells out every key and where the numbers come from; the original PyTorch
    program passes what it does not know on to its model, so there only the source's keys are kept.
    """
    raw = {**explicit(model.config.lm), **model.raw} if layout == "mlx" else dict(model.raw)
    if layout == "pytorch" and raw.get("model_type") == "personaplex":
        raw["model_type"] = "moshi"
    raw["moshi_name"] = weights
    if source.codec is not None:
        raw["mimi_name"] = source.codec.name
        if source.codec.raw is not None:
            raw["mimi_config_name"] = CODEC_CONFIG
    if source.tokenizer is not None:
        raw["tokenizer_name"] = source.tokenizer.name
    if quantization is not None:
        raw["quantization"] = quantization
    if layout == "mlx":
        said = {
            "name": source.public_name,
            "revision": source.revision,
            "format": source.kind,
            "licence": source.licence,
        }
        raw["source"] = {k: v for k, v in said.items() if v is not None}
    # It has to be what was planned.
    CheckpointConfig.from_dict(raw)
    return raw


def explicit(cfg: LmConfig) -> dict[str, Any]:
    """The keys that readers of the MLX layout ask for, defaults included."""
    stack, dep = cfg.transformer, cfg.depformer
    depth = dep.transformer
    # Of a model without depth transformer the sizes mean nothing, but published readers ask for them.
    widths = dep.feedforwards or [4 * depth.d_model]
    return {
        "dim": stack.d_model,
        "num_heads": stack.num_heads,
        "num_layers": stack.num_layers,
        "hidden_scale": stack.dim_feedforward / stack.d_model,
        "causal": True,
        "layer_scale": stack.layer_scale,
        "context": stack.context,
        "max_period": stack.max_period,
        "gating": stack.gating,
        "norm": stack.norm,
        "positional_embedding": stack.positional_embedding,
        "n_q": cfg.n_q,
        "dep_q": cfg.dep_q,
        "card": cfg.card,
        "text_card": cfg.text_card,
        "existing_text_padding_id": cfg.padding_token,
        "delays": cfg.delays,
        "depformer_dim": depth.d_model,
        "depformer_num_heads": depth.num_heads,
        "depformer_num_layers": depth.num_layers,
        "depformer_dim_feedforward": widths[0] if len(set(widths)) == 1 else widths,
        "depformer_layer_scale": depth.layer_scale,
        "depformer_gating": depth.gating,
        "depformer_pos_emb": depth.positional_embedding,
        "depformer_max_period": depth.max_period,
        "depformer_multi_linear": len(set(dep.input_sets)) > 1,
        "depformer_weights_per_step": dep.weights_per_step,
    }


def recorded(packing: Mapping[str, Quantization], dense: Sequence[str] = ()) -> dict[str, Any]:
    """A packing in mlx-lm's words: the most frequent kind for all, then the layers that differ; `dense` ones are false."""
    kinds = list(packing.values())
    usual = max(dict.fromkeys(kinds), key=kinds.count)
    words = {path: {"group_size": q.group_size, "bits": q.bits, "mode": q.mode} for path, q in packing.items()}
    common = {"group_size": usual.group_size, "bits": usual.bits, "mode": usual.mode}
    return {
        **common,
        **{path: entry for path, entry in words.items() if entry != common},
        **dict.fromkeys(dense, False),
    }
