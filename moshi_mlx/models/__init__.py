"""The models: architecture and weight names. `LmGen` and the published configurations are here for existing scripts."""

from ..checkpoint.description import CheckpointConfig as _CheckpointConfig
from ..config import presets as _presets
from ..config.parts import LmConfig
from ..engine.generate import LmGen
from . import generate, mimi
from .lm import Lm
from .mimi import Mimi, MimiConfig, mimi_202407

__all__ = [
    "Lm",
    "LmConfig",
    "LmGen",
    "Mimi",
    "MimiConfig",
    "config1b_202412",
    "config1b_202412_16rvq",
    "config_helium_1_preview_2b",
    "config_v0_1",
    "generate",
    "mimi",
    "mimi_202407",
]


def config_v0_1() -> LmConfig:
    """Moshi 7B v0.1 (moshiko, moshika)."""
    return _CheckpointConfig.from_dict(_presets.MOSHI_7B).lm


def config1b_202412() -> LmConfig:
    """Hibiki 1B."""
    return _CheckpointConfig.from_dict(_presets.HIBIKI_1B).lm


def config1b_202412_16rvq() -> LmConfig:
    """Hibiki 1B with 16 codebooks each way."""
    return _CheckpointConfig.from_dict(_presets.HIBIKI_1B_16RVQ).lm


def config_helium_1_preview_2b() -> LmConfig:
    """Helium-1 preview 2B, a text model."""
    return _CheckpointConfig.from_dict(_presets.HELIUM_1_PREVIEW_2B).lm
