"""Import path of the published package; the code is in `engine`."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..engine.generate import LmGen as LmGen

_HOMES = {
    "LmGen": "..engine.generate",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
