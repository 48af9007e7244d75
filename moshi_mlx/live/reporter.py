"""Telling the user: a thread that writes what the loop says happened, so that a slow terminal never delays a frame."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from .figures import Status

# What waits for a terminal or a pipe that does not take it; older events are lost and counted.
KEPT = 2000


@dataclass(frozen=True)
class Event:
    """`kind`: text, word, notice, status."""

    kind: str
    fields: dict = field(default_factory=dict)


class View(Protocol):
    """How events are shown. All methods are called on the reporter's thread."""

    @property
    def period(self) -> float | None:
        """Seconds between calls of `draw`; None: only after events."""

    def start(self, status: Status) -> None: ...

    def show(self, event: Event) -> None: ...

    def draw(self, status: Status) -> None: ...

    def end(self, status: Status) -> None: ...


class Reporter:
    """`emit` may be called from any thread and never blocks."""

    def __init__(self, view: View, status: Status, on_broken: Callable[[], None] | None = None):
        """`on_broken` is called when nobody reads what is written any more."""
        self.lost = 0
        self._view, self._status, self._on_broken = view, status, on_broken
        self._events: deque[Event] = deque()
        self._changed = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def emit(self, kind: str, **fields) -> None:
        with self._changed:
            if len(self._events) >= KEPT:
                self._events.popleft()
                self.lost += 1
            self._events.append(Event(kind, fields))
            self._changed.notify()

    def close(self) -> None:
        """Show what is left, unless the reader stands still."""
        with self._changed:
            self._ending = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(5)

    def _run(self) -> None:
        try:
            self._view.start(self._status)
            try:
                while self._next():
                    self._view.draw(self._status)
            finally:
                self._view.end(self._status)
        except OSError:
            # A closed pipe or a terminal that is gone.
            if self._on_broken is not None:
                self._on_broken()

    def _next(self) -> bool:
        """Show the events there are; false when the last one has been shown."""
        with self._changed:
            if not self._events and not self._ending:
                self._changed.wait(self._view.period)
            events, ending = list(self._events), self._ending
            self._events.clear()
        for event in events:
            self._view.show(event)
        return not ending
