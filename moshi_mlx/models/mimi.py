"""Import path of the published package; the codec is in `mimi_model`, its published surface in `compat`."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..compat.configurations import mimi_202407 as mimi_202407
    from ..compat.mimi import Mimi as Mimi
    from ..config import MimiConfig as MimiConfig
    from .mimi_model import MimiModel as MimiModel

_HOMES = {
    "mimi_202407": "..compat.configurations",
    "Mimi": "..compat.mimi",
    "MimiConfig": "..config",
    "MimiModel": ".mimi_model",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
