"""Moshi on Apple silicon: full-duplex spoken dialogue, speech-to-text, text-to-speech and translation with MLX."""

from . import models, modules, utils
from .version import __version__

__all__ = ["__version__", "models", "modules", "utils"]
