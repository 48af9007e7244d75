"""Many clients on one model: what steps the rows of a batch for whoever has something to be stepped.

    scheduler = Scheduler(make)             # make() loads the model, on the scheduler's thread
    stream = scheduler.open(options)        # any thread
    stream.feed(pcm); stream.read(1.0)

At each tick every row that has a frame takes one and all of them make one step, so that nobody is served before anybody else
and a backlog is worked off as fast as the model steps. A client without a frame costs nothing. A frame waits for no more than
the tick under way, `Scheduler.patience` for others that are about due, and a bounded piece of a row's joining.
"""

from __future__ import annotations

import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from .. import arguments
from ..errors import InputError, MoshiError
from .kind import Kind
from .model_thread import ModelThread
from .streams import ModelStopped, NoFreeRow, Stream

T = TypeVar("T")
CALLS_WAITING = 64
# Clients that may wait for a row.
STREAMS_WAITING = 256


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
    """Who is served by the rows of a model. `patience` in seconds is how long a step waits for rows whose frame is about due.

    It has a thread called `name` of its own, or turns on a `thread` that several share: those made first come first.
    """

    def __init__(
        self,
        make: Callable[[], K],
        name: str = "model",
        patience: float | None = None,
        thread: ModelThread | None = None,
    ):
        self._make, self._process = arguments.function("make", make), os.getpid()
        self._patience = patience
        self._owns, self._thread = thread is None, thread or ModelThread(name)
        self._changed = self._thread.changed
        self._waiting: deque[Stream] = deque()
        self._rows: list[Stream | None] = []
        self._joins: dict[int, Iterator[None]] = {}
        self._calls: queue.Queue[tuple[Callable[[K], Any], Future]] = queue.Queue(CALLS_WAITING)
        self._ready_since: float | None = None
        self._loaded: Future[None] = Future()
        self._left = threading.Event()
        self._seconds: deque[float] = deque(maxlen=1000)
        self._steps = self._streams = self._dropped_in = self._dropped_out = 0
        self._worst_wait = 0.0
        self._last: dict[int, float] = {}
        self.closing = False
        self.error: BaseException | None = None
        try:
            self._thread.receive(self)
            # What making it raised is raised here.
            self._loaded.result()
        except BaseException:
            if self._owns:
                self._thread.close()
            raise

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
        return self._thread.running and not self.closing

    def open(
        self, options: Any = None, *, wait: bool = True, live: bool = True, notify: Callable[[], object] | None = None
    ) -> Stream:
        """A stream for one client, which gets a row as soon as one is free.

        Without `wait` it is refused (`NoFreeRow`) where it would have to wait. An upload (`live` false) comes after every live stream
        and never takes the last free row of several. `notify()` is called whenever there is something new about it, mostly on the
        scheduler's thread: it has to be quick and must not call the scheduler.
        """
        arguments.function("notify", notify or print)
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
        arguments.function("what is called", action)
        future: Future[T] = Future()
        with self._changed:
            # Nobody asks for what nobody will answer.
            if not self.running:
                raise ModelStopped("the model is no longer running.")
            try:
                self._calls.put_nowait((action, future))
            except queue.Full:
                raise InputError(f"{CALLS_WAITING} calls wait for the model already.") from None
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
        """Stop after the step under way, and end every stream."""
        if self._owns:
            self._thread.close()
        elif self.running:
            with self._changed:
                self.closing = True
                self._changed.notify_all()
            if not self._thread.here:
                self._left.wait()

    def __enter__(self) -> Scheduler[K]:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # The model's thread ---------------------------------------------------------------------------------------------

    def enter(self) -> None:
        try:
            self._kind = kind = self._make()
            self._bounds, self._rows = kind.bounds, [None] * kind.rows
            if self._patience is None:
                # A tenth of a frame.
                self._patience = 0.1 * kind.bounds.frame_size / kind.bounds.sample_rate
        except BaseException as e:
            self._loaded.set_exception(e)
            raise
        self._loaded.set_result(None)

    def attend(self) -> None:
        self._answer_calls()
        self._let_go()
        self._admit()

    def due(self, now: float) -> float:
        """Now where a row joins or has something for a step, but a moment later while others are about due."""
        if self._joins:
            return 0.0
        ready = self._ready()
        if not ready:
            self._ready_since = None
            return math.inf
        if self._ready_since is None:
            self._ready_since = now
        present = {row: s for row, s in enumerate(self._rows) if s is not None and s.opened}
        backlog = any(present[row].buffered > 2 * self._bounds.frame_size for row in ready)
        awaited = any(row not in ready and now - self._last.get(row, 0.0) < self._frame_seconds for row in present)
        assert self._patience is not None
        return max(0.0, self._ready_since + self._patience - now) if awaited and not backlog else 0.0

    def turn(self) -> None:
        self._join_a_bit()
        self._ready_since = None
        if ready := self._ready():
            self._step(ready)

    def _ready(self) -> list[int]:
        """Rows that have something for a step."""
        return [
            row
            for row, s in enumerate(self._rows)
            if s is not None and s.opened and not s.closed and not s.stalled and self._kind.ready(row, s.inbox)
        ]

    @property
    def _frame_seconds(self) -> float:
        """A frame, and as much again for what a network is late."""
        return 2 * self._bounds.frame_size / self._bounds.sample_rate

    def _step(self, ready: list[int]) -> None:
        kind, given = self._kind, {}
        for row in ready:
            stream = self._rows[row]
            assert stream is not None
            try:
                given[row] = kind.collect(row, stream.inbox)
            except Exception as e:
                # Whatever a client has sent that cannot be used is no trouble of the others.
                self._end(row, e)
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
                self._end(row, e)
                continue
            if outcome.done:
                self._end(row)
            elif outcome.items:
                stream.tell()

    def _may_join(self, stream: Stream) -> bool:
        """Whether a row is free for it."""
        free = sum(s is None for s in self._rows)
        return free > 0 if stream.live or self.rows == 1 else free > 1

    def _number(self) -> None:
        for i, stream in enumerate(self._waiting, 1):
            stream.place = i

    def _admit(self) -> None:
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
                self._joins[row] = self._kind.join(row, stream.options)
                self._last.pop(row, None)
                told.append(stream)
            if told:
                self._number()
                told += self._waiting
        for stream in told:
            stream.tell()

    def _join_a_bit(self) -> None:
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
            self._end(row, e)
            return
        self._joins[row] = bits

    def _let_go(self) -> None:
        """Free the rows of clients that have closed."""
        for row, stream in enumerate(self._rows):
            if stream is not None and stream.closed:
                self._end(row)

    def _end(self, row: int, error: BaseException | None = None) -> None:
        stream = self._rows[row]
        assert stream is not None
        self._joins.pop(row, None)
        self._kind.leave(row)
        with self._changed:
            self._rows[row] = None
            self._dropped_in += stream.dropped_in
            self._dropped_out += stream.dropped_out
            if stream.live:
                self._worst_wait = max(self._worst_wait, stream.worst_wait)
        stream.end(error)
        stream.tell()

    def _answer_calls(self) -> None:
        while not self._calls.empty():
            action, future = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(action(self._kind))
                except BaseException as e:
                    future.set_exception(e)

    def leave(self, error: BaseException | None) -> None:
        """Every stream ends, with `error` as the cause."""
        with self._changed:
            self.error, self.closing = error, True
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
        if not self._loaded.done():
            self._loaded.set_exception(ModelStopped("the models' thread has ended."))
        self._left.set()
        if self._owns:
            self._thread.close()
