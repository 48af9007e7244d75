"""Moshi on Apple silicon: full-duplex spoken dialogue, speech-to-text, text-to-speech and translation with MLX."""

from .errors import interrupt_at_once

# Before anything else is imported.
interrupt_at_once()

import os  # noqa: E402
from typing import TYPE_CHECKING  # noqa: E402

from .lazy import hand_on  # noqa: E402
from .version import __version__  # noqa: E402

# Products in TF32 keep ten bits: enough for a near-tie of the codec's codes to fall the other way. MLX reads this when it first multiplies on
# an M5 or a CUDA card; whoever has set it means it.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

if TYPE_CHECKING:
    from . import models as models
    from . import modules as modules
    from . import utils as utils

__all__ = ["__version__", "models", "modules", "utils"]
__getattr__ = hand_on(__name__, __package__, {"models": ".models", "modules": ".modules", "utils": ".utils"})
