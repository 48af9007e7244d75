"""A conversation: one 80 ms frame in, one out, its state a value that can be kept."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from .reply import Frame as Frame
    from .session import Session as Session
    from .session import default_attributes as default_attributes

__getattr__ = hand_on(
    __name__, __package__, {"Frame": ".reply", "Session": ".session", "default_attributes": ".session"}
)
