"""`Lm`: the language model with what scripts of the published package call on it."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.model_files import load_lm_file
from ..config import LmConfig
from ..engine.generate import LmGen
from ..models.lm_model import LmModel


class Lm(LmModel):
    """A `LmModel` that loads files itself. Made without weights; `LmGen` steps it."""

    def load_pytorch_weights(self, file: str, lm_config: LmConfig | None = None, strict: bool = True) -> nn.Module:
        """Load a file in the published PyTorch (or Candle) layout. `lm_config` is this model's own."""
        load_lm_file(self, file, strict=strict)
        return self

    def load_weights(self, file_or_weights: Any, strict: bool = True) -> nn.Module:
        """Load a file in the published MLX layout, or a list of (name, array)."""
        if not isinstance(file_or_weights, str):
            return super().load_weights(file_or_weights, strict=strict)
        load_lm_file(self, file_or_weights, strict=strict)
        return self

    def warmup(self, ct: Any = None) -> None:
        """Run one frame, so that kernels are compiled before the first real one. Leaves no trace."""
        gen = LmGen(self, max_steps=1)
        gen.step(mx.zeros((1, self.cfg.other_codebooks), mx.int32), ct)
        mx.eval(gen.state)
