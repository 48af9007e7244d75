"""`models.generate.LmGen` of the published package."""

from ..generate import LmGen

__all__ = ["LmGen"]
