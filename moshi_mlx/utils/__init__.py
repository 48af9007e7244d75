"""Import paths of the published package."""

from ..modules.sampling import Sampler

__all__ = ["Sampler"]
