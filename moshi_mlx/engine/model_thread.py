"""The thread on which models are stepped: several kinds share one, and take turns on it.

    home = ModelThread()
    talk, stt = Scheduler(make_talk, thread=home), Scheduler(make_stt, thread=home)     # the first comes first

After every turn the first kind that has something to do has the next one, so that a frame of it waits for no more than the step under
way; a later kind is passed over `TURNS_PASSED` times at most, so that nobody starves behind another's backlog.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from ..errors import InputError
from ..machine import streams
from ..machine.owner import PATIENCE, Closer
from .streams import Bell

T = TypeVar("T")
TURNS_PASSED = 2
# Without news everybody looks round so often.
IDLE_SECONDS = 0.5


class Guest(Protocol):
    """Who has turns of the thread. All of it is called there."""

    @property
    def closing(self) -> bool:
        """Whether it wants no more turns."""
        ...

    def enter(self) -> None:
        """Make the model."""
        ...

    def attend(self) -> None:
        """See who has come and gone; nothing that takes as long as a step."""
        ...

    def due(self, now: float) -> float:
        """Seconds from `now` until it wants a turn: 0 for now, infinity for not until there is news."""
        ...

    def turn(self) -> None:
        """About one step."""
        ...

    def leave(self, error: BaseException | None) -> None:
        """There are no more turns, because of `error` or because it wanted none."""
        ...


class ModelThread:
    """A daemon thread with streams of its own for MLX. What one guest raises ends that guest alone."""

    def __init__(self, name: str = "model"):
        self.changed = Bell()
        self._guests: list[Guest] = []
        self._coming: deque[Guest] = deque()
        self._jobs: deque[tuple[Callable[[], Any], Future]] = deque()
        self._passed: dict[Guest, int] = {}
        self._closing = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._closer = Closer(lambda: self.close(PATIENCE))

    @property
    def running(self) -> bool:
        return self._thread.is_alive() and not self._closing and os.getpid() == self._process

    @property
    def here(self) -> bool:
        """Whether this is the thread."""
        return threading.current_thread() is self._thread

    def receive(self, guest: Guest) -> None:
        """Let somebody in, behind those who are there."""
        with self.changed:
            if not self.running:
                raise InputError("the models' thread has ended; make another one.")
            self._coming.append(guest)
            self.changed.notify_all()

    def run(self, action: Callable[[], T]) -> T:
        """The result of `action()`, or what it raised, from this thread; everybody waits for it, as is right before they begin."""
        future: Future[T] = Future()
        with self.changed:
            if not self.running:
                raise InputError("the models' thread has ended; make another one.")
            self._jobs.append((action, future))
            self.changed.notify_all()
        return future.result()

    def close(self, timeout: float | None = None) -> None:
        """End it after the turn under way, and everybody with it."""
        if os.getpid() != self._process:
            # There is no such thread here.
            return
        with self.changed:
            self._closing = True
            self.changed.notify_all()
        if not self.here:
            self._thread.join(timeout)

    def __enter__(self) -> ModelThread:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # The thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        streams.use()
        error: BaseException | None = None
        try:
            while not self._closing:
                self._round()
        except BaseException as e:
            error = e
        finally:
            with self.changed:
                self._closing = True
            for guest in [*self._guests, *self._coming]:
                guest.leave(error)
            for _, future in self._jobs:
                future.cancel()

    def _round(self) -> None:
        seen = self.changed.rung
        while self._jobs:
            action, future = self._jobs.popleft()
            try:
                future.set_result(action())
            except Exception as e:
                future.set_exception(e)
        while self._coming:
            guest = self._coming.popleft()
            self._guests.append(guest)
            self._let(guest, guest.enter)
        for guest in list(self._guests):
            if guest.closing:
                self._part(guest, None)
            else:
                self._let(guest, guest.attend)
        now = time.monotonic()
        waits = {guest: self._due(guest, now) for guest in list(self._guests)}
        chosen = self._next([guest for guest, wait in waits.items() if wait <= 0])
        if chosen is not None:
            self._let(chosen, chosen.turn)
        else:
            self.changed.wait_since(seen, min([IDLE_SECONDS, *waits.values()]))

    def _next(self, ready: list[Guest]) -> Guest | None:
        """Whose turn it is among those who have something to do."""
        if not ready:
            self._passed.clear()
            return None
        chosen = max(ready, key=lambda guest: self._passed.get(guest, 0))
        if self._passed.get(chosen, 0) < TURNS_PASSED:
            chosen = ready[0]
        self._passed = {guest: self._passed.get(guest, 0) + 1 for guest in ready if guest is not chosen}
        return chosen

    def _due(self, guest: Guest, now: float) -> float:
        try:
            return guest.due(now)
        except Exception as e:
            self._part(guest, e)
            return math.inf

    def _let(self, guest: Guest, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as e:
            self._part(guest, e)

    def _part(self, guest: Guest, error: BaseException | None) -> None:
        self._guests.remove(guest)
        guest.leave(error)
