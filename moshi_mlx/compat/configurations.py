"""Published configurations under their published names."""

from __future__ import annotations

from ..config import CheckpointConfig, LmConfig, MimiConfig, presets


def config_v0_1() -> LmConfig:
    """Moshi 7B v0.1 (moshiko, moshika)."""
    return CheckpointConfig.from_dict(presets.MOSHI_7B).lm


def config1b_202412() -> LmConfig:
    """Hibiki 1B."""
    return CheckpointConfig.from_dict(presets.HIBIKI_1B).lm


def config1b_202412_16rvq() -> LmConfig:
    """Hibiki 1B with 16 codebooks each way."""
    return CheckpointConfig.from_dict(presets.HIBIKI_1B_16RVQ).lm


def config_helium_1_preview_2b() -> LmConfig:
    """Helium-1 preview 2B, a text model."""
    return CheckpointConfig.from_dict(presets.HELIUM_1_PREVIEW_2B).lm


def mimi_202407(num_codebooks: int = 32) -> MimiConfig:
    """The published codec, holding its first `num_codebooks` levels."""
    cfg = MimiConfig.from_dict(presets.MIMI_V0_1)
    cfg.num_codebooks = num_codebooks
    return cfg
