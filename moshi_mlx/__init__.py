"""Moshi on Apple silicon: full-duplex spoken dialogue, speech-to-text, text-to-speech and translation with MLX."""

from typing import TYPE_CHECKING

from .lazy import hand_on
from .machine.cpu.linux_blas import use_openblas as _use_openblas
from .version import __version__

if TYPE_CHECKING:
    from . import models as models
    from . import modules as modules
    from . import utils as utils

_use_openblas()

__all__ = ["__version__", "models", "modules", "utils"]
__getattr__ = hand_on(__name__, __package__, {"models": ".models", "modules": ".modules", "utils": ".utils"})
