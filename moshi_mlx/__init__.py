"""Moshi on Apple silicon: full-duplex spoken dialogue, speech-to-text, text-to-speech and translation with MLX."""

from . import models, modules, utils
from .machine.cpu.linux_blas import use_openblas as _use_openblas
from .version import __version__

_use_openblas()

__all__ = ["__version__", "models", "modules", "utils"]
