"""Configurations by the keywords of the published package, and its ready-made ones.

Each class takes our own keywords too, and is in all else the one that it is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from ..config import CheckpointConfig, MimiConfig, parts, presets
from ..errors import ConfigError, quoted

# Keywords that every model has the same value for.
_SETTLED = {
    "causal": True, "norm_first": True, "bias_ff": False, "bias_attn": False, "use_conv_block": False, "conv_layout": False,
}  # fmt: skip
# They say something of convolutions only, which no model has.
_UNUSED = ("use_conv_bias", "conv_kernel_size")


class TransformerConfig(parts.TransformerConfig):
    """One transformer stack. `gating` is True or False there, and `norm="rms_norm"` what files call `rms_norm_f32`."""

    def __init__(self, d_model: int, num_heads: int, num_layers: int, **others: Any):
        for name, value in _SETTLED.items():
            if others.pop(name, value) not in (value, None):
                raise ConfigError(f"config: '{name}' is {value} in every model, found {quoted(not value)}.")
        for name in _UNUSED:
            others.pop(name, None)
        if isinstance(others.get("gating"), bool):
            others["gating"] = "silu" if others["gating"] else "none"
            if others.get("norm") == "rms_norm":
                others["norm"] = "rms_norm_f32"
        super().__init__(d_model, num_heads, num_layers, **others)


class DepFormerConfig(parts.DepFormerConfig):
    """The depth transformer: weights of its own for each codebook, or as `weights_per_step_schedule` says."""

    def __init__(
        self,
        transformer: parts.TransformerConfig,
        num_slices: int,
        weights_per_step_schedule: Sequence[int] | None = None,
        low_rank_embeddings: int | None = None,
        **ours: Any,
    ):
        sets = list(range(num_slices) if weights_per_step_schedule is None else weights_per_step_schedule)
        if len(sets) != num_slices:
            raise ConfigError(
                f"config: 'weights_per_step_schedule' should list {num_slices} sets, found {quoted(sets)}."
            )
        sizes = [transformer.dim_feedforward] * (max(sets, default=-1) + 1)
        ours = {"weight_sets": sets, "input_sets": list(sets), "feedforwards": sizes, **ours}
        super().__init__(transformer, num_slices, low_rank_embeddings=low_rank_embeddings, **ours)

    @property
    def weights_per_step_schedule(self) -> list[int] | None:
        """The set of weights of each codebook, None where each has its own."""
        return None if self.weight_sets == list(range(self.num_slices)) else self.weight_sets


class LmConfig(parts.LmConfig):
    """The language model. `audio_delays` leaves out that of the text, which is 0; vocabularies count the token of the beginning."""

    def __init__(
        self,
        transformer: parts.TransformerConfig,
        depformer: parts.DepFormerConfig,
        *,
        text_out_vocab_size: int | None = None,
        audio_vocab_size: int | None = None,
        audio_codebooks: int | None = None,
        audio_delays: Sequence[int] | None = None,
        **ours: Any,
    ):
        if audio_vocab_size is not None:
            ours["card"] = audio_vocab_size - 1
        if audio_codebooks is not None:
            ours["n_q"] = audio_codebooks
        if audio_delays is not None:
            ours["delays"] = [0, *audio_delays]
        if text_out_vocab_size is not None:
            ours["text_card_out"] = text_out_vocab_size
            ours.setdefault("text_card", ours.get("text_in_vocab_size", text_out_vocab_size + 1) - 1)
        conditioners = ours.get("conditioners")
        if conditioners and "fuser" not in ours:
            tables = [name for name, c in conditioners.items() if isinstance(c, parts.LutConditionerConfig)]
            ours["fuser"] = parts.FuserConfig(sum=tables, cross=[name for name in conditioners if name not in tables])
        super().__init__(transformer, depformer, **ours)

    @classmethod
    def from_config_dict(cls, data: dict) -> LmConfig:  # type: ignore[override]
        """From the content of a `config.json`, file names and options of other parts included."""
        return cls._of(CheckpointConfig.from_dict(data).lm)

    @classmethod
    def _of(cls, cfg: parts.LmConfig) -> LmConfig:
        dep = cfg.depformer
        values = {f.name: getattr(cfg, f.name) for f in fields(cfg)}
        values["depformer"] = DepFormerConfig(**{f.name: getattr(dep, f.name) for f in fields(dep)})
        return cls(**values)


def config_v0_1() -> LmConfig:
    """Moshi 7B v0.1 (moshiko, moshika)."""
    return LmConfig.from_config_dict(presets.MOSHI_7B)


def config1b_202412() -> LmConfig:
    """Hibiki 1B."""
    return LmConfig.from_config_dict(presets.HIBIKI_1B)


def config1b_202412_16rvq() -> LmConfig:
    """Hibiki 1B with 16 codebooks each way."""
    return LmConfig.from_config_dict(presets.HIBIKI_1B_16RVQ)


def config_helium_1_preview_2b() -> LmConfig:
    """Helium-1 preview 2B, a text model."""
    return LmConfig.from_config_dict(presets.HELIUM_1_PREVIEW_2B)


def mimi_202407(num_codebooks: int = 32) -> MimiConfig:
    """The published codec, holding its first `num_codebooks` levels."""
    cfg = MimiConfig.from_dict(presets.MIMI_V0_1)
    cfg.num_codebooks = num_codebooks
    return cfg
