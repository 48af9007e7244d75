"""Import path of the published package; the code is in `engine`, its published surface in `compat`."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..compat.generate import LmGen as LmGen

_HOMES = {
    "LmGen": "..compat.generate",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
