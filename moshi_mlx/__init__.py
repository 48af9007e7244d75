"""Moshi on Apple silicon: full-duplex spoken dialogue, speech-to-text, text-to-speech and translation with MLX."""

import os
from typing import TYPE_CHECKING

from .errors import interrupt_at_once
from .lazy import hand_on
from .version import __version__

interrupt_at_once()
# Products in TF32 keep ten bits: enough for a near-tie of the codec's codes to fall the other way. MLX reads this when it first multiplies on
# an M5 or a CUDA card; whoever has set it means it.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

if TYPE_CHECKING:
    from . import models as models
    from . import modules as modules
    from . import utils as utils

__all__ = ["__version__", "models", "modules", "utils"]
__getattr__ = hand_on(__name__, __package__, {"models": ".models", "modules": ".modules", "utils": ".utils"})
