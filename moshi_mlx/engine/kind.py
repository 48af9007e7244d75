"""What a scheduler steps: a batch of rows of one kind of model, and what a step of it gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from .streams import Bounds, Inbox


@dataclass
class Outcome:
    """What a step gave a row: items for its client, and whether that was all."""

    items: list[Any] = field(default_factory=list)
    done: bool = False


class Kind(Protocol):
    """A batch of rows of one kind of model. All of it is called on the scheduler's thread."""

    rows: int
    bounds: Bounds

    def join(self, row: int, options: Any) -> Iterator[None]:
        """Begin a stream in `row`, in pieces of at most about one step each, between which other rows go on."""
        ...

    def leave(self, row: int) -> None:
        """The stream in `row` has ended."""
        ...

    def ready(self, row: int, inbox: Inbox) -> bool:
        """Whether the row has something for a step."""
        ...

    def collect(self, row: int, inbox: Inbox) -> Any:
        """Take it."""
        ...

    def step(self, given: dict[int, Any]) -> dict[int, Outcome]:
        """One step of the rows of `given`, each with what was collected for it."""
        ...
