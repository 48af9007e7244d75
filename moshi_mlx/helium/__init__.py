"""Helium, the text model under Moshi."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from .text_model import TextModel as TextModel
    from .text_model import generate as generate
    from .text_model import load as load

__getattr__ = hand_on(__name__, __package__, dict.fromkeys(("TextModel", "generate", "load"), ".text_model"))
