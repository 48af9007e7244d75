"""The models: architecture and weight names. Names that scripts of the published package use are handed on."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..compat.configurations import LmConfig as LmConfig
    from ..compat.configurations import config1b_202412 as config1b_202412
    from ..compat.configurations import config1b_202412_16rvq as config1b_202412_16rvq
    from ..compat.configurations import config_helium_1_preview_2b as config_helium_1_preview_2b
    from ..compat.configurations import config_v0_1 as config_v0_1
    from ..compat.configurations import mimi_202407 as mimi_202407
    from ..compat.generate import LmGen as LmGen
    from ..compat.lm import Lm as Lm
    from ..compat.mimi import Mimi as Mimi
    from ..config import MimiConfig as MimiConfig
    from . import generate as generate
    from . import lm as lm
    from . import mimi as mimi
    from . import tts as tts

_HOMES = {
    "config1b_202412": "..compat.configurations",
    "config1b_202412_16rvq": "..compat.configurations",
    "config_helium_1_preview_2b": "..compat.configurations",
    "config_v0_1": "..compat.configurations",
    "mimi_202407": "..compat.configurations",
    "Lm": "..compat.lm",
    "Mimi": "..compat.mimi",
    "LmConfig": "..compat.configurations",
    "LmGen": "..compat.generate",
    "MimiConfig": "..config",
    "generate": ".generate",
    "lm": ".lm",
    "mimi": ".mimi",
    "tts": ".tts",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
