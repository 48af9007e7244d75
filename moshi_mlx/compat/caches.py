"""Caches that scripts of the published package reset between two recordings."""

from __future__ import annotations

from collections.abc import Callable


class Cache:
    """One layer's part of a stream. What is remembered belongs to the stream as a whole, so that resetting any layer forgets it."""

    def __init__(self, forget: Callable[[], None]):
        self._forget = forget

    def reset(self) -> None:
        """Forget the stream."""
        self._forget()


def caches(layers: int, forget: Callable[[], None]) -> list[Cache]:
    """One for each layer, as the published package lists them."""
    return [Cache(forget) for _ in range(layers)]
