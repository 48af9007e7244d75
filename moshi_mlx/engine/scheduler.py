"""Many clients on one model: a thread that steps the rows of a batch for whoever has something to be stepped.

    scheduler = Scheduler(make)             # make() loads the model, on the scheduler's thread
    stream = scheduler.open(options)        # any thread
    stream.feed(pcm); stream.read(1.0)

At each tick every row that has a frame takes one and all of them make one step, so that nobody is served before anybody else
and a backlog is worked off as fast as the model steps. A client without a frame costs nothing. A frame waits for no more than
the tick under way, `Scheduler.patience` for others that are about due, and a bounded piece of a row's joining.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from ..errors import InputError, MoshiError
from ..machine import streams
from ..machine.owner import PATIENCE, Closer
from .streams import Bell, Bounds, Inbox, ModelStopped, NoFreeRow, Stream

T = TypeVar("T")
CALLS_WAITING = 64
# Clients that may wait for a row.
STREAMS_WAITING = 256
# Without news the scheduler looks round so often.
IDLE_SECONDS = 0.5


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


K = TypeVar("K", bound=Kind)


@dataclass(frozen=True)
class Figures:
    """Steps so far and their seconds (of the last thousand), the worst wait of a live client's frame, and what was lost."""

    steps: int
    p50: float
    p95: float
    longest: float
    worst_wait: float
    live: int
    waiting: int
    streams: int
    dropped_in: int
    dropped_out: int


class Scheduler(Generic[K]):
    """Owns the model's thread. `patience` in seconds is how long a step waits for rows whose frame is about due."""

    def __init__(self, make: Callable[[], K], name: str = "model", patience: float | None = None):
        self._make, self._process = make, os.getpid()
        self._patience = patience
        self._changed = Bell()
        self._waiting: deque[Stream] = deque()
        self._rows: list[Stream | None] = []
        self._joins: dict[int, Iterator[None]] = {}
        self._calls: queue.Queue[tuple[Callable[[K], Any], Future]] = queue.Queue(CALLS_WAITING)
        self._closing = False
        self._loaded: Future[None] = Future()
        self._seconds: deque[float] = deque(maxlen=1000)
        self._steps = self._streams = self._dropped_in = self._dropped_out = 0
        self._worst_wait = 0.0
        self._last: dict[int, float] = {}
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        self._closer = Closer(self._stop)
        # What making it raised is raised here.
        self._loaded.result()

    # Any thread -----------------------------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        return len(self._rows)

    @property
    def live(self) -> int:
        """Streams that have a row."""
        return sum(s is not None for s in self._rows)

    @property
    def waiting(self) -> int:
        """Streams that wait for one."""
        return len(self._waiting)

    @property
    def running(self) -> bool:
        return self._thread.is_alive() and not self._closing

    def open(
        self, options: Any = None, *, wait: bool = True, live: bool = True, notify: Callable[[], object] | None = None
    ) -> Stream:
        """A stream for one client, which gets a row as soon as one is free.

        Without `wait` it is refused (`NoFreeRow`) where it would have to wait. An upload (`live` false) comes after every live stream
        and never takes the last free row of several. `notify()` is called whenever there is something new about it, mostly on the
        scheduler's thread: it has to be quick and must not call the scheduler.
        """
        with self._changed:
            if not self.running or os.getpid() != self._process:
                raise ModelStopped("the model is not running in this process any more.") from self.error
            stream = Stream(self._bounds, self._changed, options, live, notify)
            before = any(s.live or not live for s in self._waiting)
            if not wait and (before or not self._may_join(stream)):
                raise NoFreeRow(f"all {self.rows} rows are taken; try again later.")
            if len(self._waiting) >= STREAMS_WAITING:
                raise NoFreeRow(f"{STREAMS_WAITING} clients wait already; try again later.")
            self._streams += 1
            if live:
                at = next((i for i, s in enumerate(self._waiting) if not s.live), len(self._waiting))
                self._waiting.insert(at, stream)
            else:
                self._waiting.append(stream)
            self._number()
            self._changed.notify_all()
        return stream

    def call(self, action: Callable[[K], T]) -> Future[T]:
        """Run `action(kind)` on the model's thread between two steps."""
        future: Future[T] = Future()
        if not self.running:
            raise ModelStopped("the model is no longer running.")
        try:
            self._calls.put_nowait((action, future))
        except queue.Full:
            raise InputError(f"{CALLS_WAITING} calls wait for the model already.") from None
        with self._changed:
            self._changed.notify_all()
        return future

    def figures(self) -> Figures:
        with self._changed:
            seconds = np.array(self._seconds or [0.0])
            present = [s for s in self._rows if s is not None]
            return Figures(
                self._steps,
                float(np.percentile(seconds, 50)),
                float(np.percentile(seconds, 95)),
                float(seconds.max()),
                max([self._worst_wait, *(s.worst_wait for s in present if s.live)]),
                len(present),
                len(self._waiting),
                self._streams,
                self._dropped_in + sum(s.dropped_in for s in present),
                self._dropped_out + sum(s.dropped_out for s in present),
            )

    def close(self) -> None:
        """End the thread after the step under way, and every stream with it."""
        self._stop(None)

    def _stop(self, timeout: float | None = PATIENCE) -> None:
        if os.getpid() != self._process:
            # There is no such thread here.
            return
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def __enter__(self) -> Scheduler[K]:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # The model's thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        streams.use()
        try:
            kind = self._make()
            self._bounds, self._rows = kind.bounds, [None] * kind.rows
            if self._patience is None:
                # A tenth of a frame.
                self._patience = 0.1 * kind.bounds.frame_size / kind.bounds.sample_rate
        except BaseException as e:
            self._loaded.set_exception(e)
            return
        self._loaded.set_result(None)
        try:
            while not self._closing:
                self._tick(kind)
        except BaseException as e:
            self.error = e
        finally:
            self._end_all()

    def _tick(self, kind: K) -> None:
        seen = self._changed.rung
        self._answer_calls(kind)
        self._let_go(kind)
        self._admit(kind)
        self._join_a_bit(kind)
        ready = self._ready(kind)
        if not ready:
            if not self._joins:
                self._changed.wait_since(seen, IDLE_SECONDS)
            return
        self._step(kind, ready)

    def _ready(self, kind: K) -> list[int]:
        """Rows for the next step, after a moment for those that are about due."""
        deadline = time.monotonic() + (self._patience or 0.0)
        while True:
            seen = self._changed.rung
            present = {row: s for row, s in enumerate(self._rows) if s is not None and s.opened}
            ready = [row for row, s in present.items() if not s.closed and not s.stalled and kind.ready(row, s.inbox)]
            now = time.monotonic()
            backlog = any(present[row].buffered > 2 * self._bounds.frame_size for row in ready)
            due = any(row not in ready and now - self._last.get(row, 0.0) < self._frame_seconds for row in present)
            if not ready or backlog or not due or now >= deadline or self._joins:
                return ready
            self._changed.wait_since(seen, deadline - now)

    @property
    def _frame_seconds(self) -> float:
        """A frame, and as much again for what a network is late."""
        return 2 * self._bounds.frame_size / self._bounds.sample_rate

    def _step(self, kind: K, ready: list[int]) -> None:
        given = {}
        for row in ready:
            stream = self._rows[row]
            assert stream is not None
            try:
                given[row] = kind.collect(row, stream.inbox)
            except MoshiError as e:
                self._end(kind, row, e)
        begin = time.monotonic()
        for row in given:
            stream = self._rows[row]
            assert stream is not None
            self._last[row] = begin
            if stream.inbox.completed:
                stream.worst_wait = max(stream.worst_wait, begin - stream.inbox.completed)
        outcomes = kind.step(given)
        self._seconds.append(time.monotonic() - begin)
        self._steps += 1
        for row, outcome in outcomes.items():
            stream = self._rows[row]
            assert stream is not None
            try:
                stream.put(outcome.items)
            except MoshiError as e:
                self._end(kind, row, e)
                continue
            if outcome.done:
                self._end(kind, row)
            elif outcome.items:
                stream.tell()

    def _may_join(self, stream: Stream) -> bool:
        """Whether a row is free for it."""
        free = sum(s is None for s in self._rows)
        return free > 0 if stream.live or self.rows == 1 else free > 1

    def _number(self) -> None:
        for i, stream in enumerate(self._waiting, 1):
            stream.place = i

    def _admit(self, kind: K) -> None:
        """Give free rows to those who wait."""
        told = []
        with self._changed:
            for stream in [s for s in self._waiting if s.closed]:
                self._waiting.remove(stream)
                stream.end()
                told.append(stream)
            while self._waiting and self._may_join(self._waiting[0]):
                stream = self._waiting.popleft()
                row = self._rows.index(None)
                self._rows[row], stream.place = stream, 0
                self._joins[row] = kind.join(row, stream.options)
                self._last.pop(row, None)
                told.append(stream)
            if told:
                self._number()
                told += self._waiting
        for stream in told:
            stream.tell()

    def _join_a_bit(self, kind: K) -> None:
        """One piece of the joining of the row that has waited longest for its turn."""
        if not self._joins:
            return
        row = next(iter(self._joins))
        bits, stream = self._joins.pop(row), self._rows[row]
        assert stream is not None
        try:
            next(bits)
        except StopIteration:
            with self._changed:
                stream.opened = True
                self._changed.notify_all()
            stream.tell()
            return
        except Exception as e:
            # Whatever a client asked for that cannot be had is no trouble of the others.
            self._end(kind, row, e)
            return
        self._joins[row] = bits

    def _let_go(self, kind: K) -> None:
        """Free the rows of clients that have closed."""
        for row, stream in enumerate(self._rows):
            if stream is not None and stream.closed:
                self._end(kind, row)

    def _end(self, kind: K, row: int, error: BaseException | None = None) -> None:
        stream = self._rows[row]
        assert stream is not None
        self._joins.pop(row, None)
        kind.leave(row)
        with self._changed:
            self._rows[row] = None
            self._dropped_in += stream.dropped_in
            self._dropped_out += stream.dropped_out
            if stream.live:
                self._worst_wait = max(self._worst_wait, stream.worst_wait)
        stream.end(error)
        stream.tell()

    def _answer_calls(self, kind: K) -> None:
        while not self._calls.empty():
            action, future = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(action(kind))
                except BaseException as e:
                    future.set_exception(e)

    def _end_all(self) -> None:
        with self._changed:
            self._closing = True
            left = [*self._waiting, *(s for s in self._rows if s is not None)]
            self._waiting.clear()
            self._rows = [None] * len(self._rows)
        for stream in left:
            stopped = ModelStopped(
                "the model has stopped." if self.error is None else f"the model has stopped: {self.error}"
            )
            stopped.__cause__ = self.error
            stream.end(stopped)
            stream.tell()
        while not self._calls.empty():
            self._calls.get()[1].cancel()
