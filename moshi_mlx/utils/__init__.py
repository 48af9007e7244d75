"""Import paths of the published package."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..modules.sampling import Sampler as Sampler
    from . import loaders as loaders
    from . import sampling as sampling

_HOMES = {"Sampler": "..modules.sampling", "loaders": ".loaders", "sampling": ".sampling"}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
