"""Import path of the published package; the sampler is in `modules`, draws by one rule in `compat`."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..compat.sampling import categorical_sampling as categorical_sampling
    from ..compat.sampling import min_p_sampling as min_p_sampling
    from ..compat.sampling import top_k_sampling as top_k_sampling
    from ..compat.sampling import top_p_sampling as top_p_sampling
    from ..modules.sampling import Sampler as Sampler

_HOMES = {
    "Sampler": "..modules.sampling",
    "categorical_sampling": "..compat.sampling",
    "min_p_sampling": "..compat.sampling",
    "top_k_sampling": "..compat.sampling",
    "top_p_sampling": "..compat.sampling",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
