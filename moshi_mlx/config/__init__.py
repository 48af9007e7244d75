"""What every part is built from: configurations as dataclasses, and the reading of the JSON that describes them."""

from .description import CheckpointConfig
from .parts import (
    DepFormerConfig,
    FuserConfig,
    LmConfig,
    LutConditionerConfig,
    MimiConfig,
    SeanetConfig,
    TensorConditionerConfig,
    TransformerConfig,
)

__all__ = [
    "CheckpointConfig",
    "DepFormerConfig",
    "FuserConfig",
    "LmConfig",
    "LutConditionerConfig",
    "MimiConfig",
    "SeanetConfig",
    "TensorConditionerConfig",
    "TransformerConfig",
]
