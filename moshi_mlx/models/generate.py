"""`models.generate.LmGen` of the published package."""

from ..engine.generate import LmGen

__all__ = ["LmGen"]
