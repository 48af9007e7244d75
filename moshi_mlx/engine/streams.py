"""One client of a scheduler: what it sends and what it gets, in bounded queues that any thread may touch.

Nothing here waits unless it is given a timeout, and nothing of a model is known.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from .. import arguments
from ..audio.capture import faded_in
from ..audio.samples import as_block, usable
from ..errors import InputError


class NoFreeRow(InputError):
    """All rows are taken, and the stream was not to wait."""


class SlowReader(InputError):
    """A client did not read what it was sent, and its stream was ended for it."""


class ModelStopped(InputError):
    """The scheduler's thread has ended, and every stream with it; the cause says why."""


class WhenFull(Enum):
    """What happens to a stream whose client does not read: its oldest sound is dropped, it is ended, or its row stands still."""

    DROP = "drop"
    END = "end"
    PAUSE = "pause"


@dataclass(frozen=True)
class Bounds:
    """How much of a stream may wait: `seconds` of sound and `characters` of text on the way in, `items` on the way out.

    `fold(old, new)` keeps in `new` what must not be lost of the item `old` that is dropped before it.
    """

    seconds: float
    items: int
    when_full: WhenFull
    characters: int = 1 << 20
    sample_rate: int = 24000
    frame_size: int = 1920
    fold: Callable[[Any, Any], Any] | None = None


class Bell(threading.Condition):
    """A condition that counts how often it was notified: who looked before may tell whether anything has changed since."""

    rung = 0

    def notify_all(self) -> None:
        self.rung += 1
        super().notify_all()

    def wait_since(self, seen: int, timeout: float) -> None:
        """Wait up to `timeout` seconds for a notice after the `seen`-th."""
        with self:
            self.wait_for(lambda: self.rung != seen, timeout)


class Inbox:
    """What a client has sent and its row has not used. Sound is 24 kHz mono float32; messages keep their place in it."""

    def __init__(self, bounds: Bounds, changed: threading.Condition):
        self._bounds, self._changed = bounds, changed
        self._limit = round(bounds.seconds * bounds.sample_rate)
        self._blocks: deque[tuple[np.ndarray, float]] = deque()
        self._messages: deque[tuple[int, Any]] = deque()
        self._characters = 0
        self._fade_in = False
        self.level = 0  # samples that wait
        self.taken = 0  # samples used or dropped so far: the client's clock
        self.dropped = 0
        self.invalid = 0  # samples that were not numbers
        self.finished = False
        self.completed = 0.0  # when the last sample of the frame taken last was fed

    # Any thread -----------------------------------------------------------------------------------------------------

    def feed(self, pcm: np.ndarray, timeout: float = 0.0) -> int:
        """Append samples `[n]`; returns how many old ones had to go, after `timeout` seconds without room for the new."""
        pcm, invalid = usable(as_block(pcm))
        now = time.monotonic()
        with self._changed:
            self.invalid += invalid
            if timeout > 0:
                self._changed.wait_for(lambda: self.level + len(pcm) <= self._limit or self.finished, timeout)
            if self.finished or not len(pcm):
                return len(pcm)
            self._blocks.append((pcm, now))
            self.level += len(pcm)
            lost = max(0, self.level - self._limit)
            if lost:
                self._skip(lost)
                self.dropped += lost
                self._fade_in = True
            self._changed.notify_all()
        return lost

    def send(self, message: Any, characters: int = 0) -> None:
        """Append a message, which comes after what has been fed so far."""
        with self._changed:
            if self.finished:
                return
            if self._characters + characters > self._bounds.characters:
                raise InputError(
                    f"more than {self._bounds.characters} characters wait to be spoken; send text more slowly."
                )
            self._characters += characters
            self._messages.append((self.taken + self.level, message))
            self._changed.notify_all()

    def finish(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self.finished = True
            self._changed.notify_all()

    # The model's thread ---------------------------------------------------------------------------------------------

    @property
    def has_frame(self) -> bool:
        """Whether a frame can be taken: a whole one, or the rest of a stream that is finished."""
        return self.level >= self._bounds.frame_size or (self.finished and self.level > 0)

    @property
    def has_message(self) -> bool:
        """Whether a message is due."""
        return (
            bool(self._messages) and self._messages[0][0] - self._messages[0][0] % self._bounds.frame_size <= self.taken
        )

    @property
    def at_end(self) -> bool:
        """Whether the stream is finished and all of it was taken."""
        return self.finished and not self.level and not self._messages

    def frame(self) -> np.ndarray:
        """The next frame `[1920]`, filled with silence if it is the last; `has_frame` is true."""
        size = self._bounds.frame_size
        out = np.zeros(size, np.float32)
        with self._changed:
            n = min(size, self.level)
            at = 0
            while at < n:
                block, self.completed = self._blocks[0]
                part = block[: n - at]
                out[at : at + len(part)] = part
                at += len(part)
                self._skip(len(part))
            fade, self._fade_in = self._fade_in, False
            self._changed.notify_all()
        return faded_in(out, self._bounds.sample_rate) if fade else out

    def message(self) -> Any:
        """The next message; `has_message` is true."""
        with self._changed:
            _, message = self._messages.popleft()
            if not self._messages:
                self._characters = 0
        return message

    def _skip(self, count: int) -> None:
        """Pass over the oldest samples."""
        self.level -= count
        self.taken += count
        while count:
            block, moment = self._blocks.popleft()
            if len(block) > count:
                self._blocks.appendleft((block[count:], moment))
            count -= min(count, len(block))


class Stream:
    """A client's end. `options` are what the scheduler's kind understands; `live` is false for an upload, which can wait."""

    def __init__(
        self,
        bounds: Bounds,
        changed: threading.Condition,
        options: Any,
        live: bool,
        notify: Callable[[], object] | None,
    ):
        self.options, self.live, self.bounds = options, live, bounds
        self.inbox = Inbox(bounds, changed)
        self.error: BaseException | None = None
        self.opened = False  # the row is ready
        self.place = 0  # in the queue for a row, 0 once there is one
        self.dropped_out = 0
        self.worst_wait = 0.0  # seconds a frame waited for its step
        self._changed, self._notify = changed, notify
        self._items: deque[Any] = deque()
        self._over = self.closed = False

    # The client -----------------------------------------------------------------------------------------------------

    def feed(self, pcm: np.ndarray, timeout: float = 0.0) -> int:
        """Sound `[n]`, 24 kHz mono, any n: floats in -1..1 or whole numbers scaled by their type. Returns samples dropped, the oldest first, because too many wait.

        With a `timeout` it first waits so many seconds for room, as an upload does.
        """
        return self.inbox.feed(pcm, arguments.number("timeout", timeout))

    def mark(self, id: int) -> None:
        """Speech to text: `Marker(id)` comes back when everything fed so far has been transcribed."""
        self.inbox.send(Mark(id))

    def flush(self) -> None:
        """Speech to text: what has been said so far is wanted now, not with the model's delay."""
        self.inbox.send(Flush())

    def say(self, text: str) -> None:
        """Text to speech: more text. Words end at white space."""
        arguments.kind("what is said", text, str, "a text")
        self.inbox.send(Say(text), len(text))

    def end_turn(self) -> None:
        """Text to speech: what follows is said by the other speaker."""
        self.inbox.send(EndTurn())

    def voice(self, values: np.ndarray) -> None:
        """Text to speech: what follows is said in a voice given in numbers, `Speak.cloned`; before any text."""
        self.inbox.send(Voice(values))

    def finish(self) -> None:
        """Nothing more will be sent. What is left is worked off, then the stream ends by itself."""
        self.inbox.finish()

    def read(self, timeout: float = 0.0) -> Any | None:
        """The next item; None if `timeout` seconds bring none or the stream has ended."""
        with self._changed:
            if timeout > 0 and not self._items:
                self._changed.wait_for(lambda: self._items or self._over, timeout)
            if not self._items:
                return None
            item = self._items.popleft()
            if len(self._items) == self.bounds.items - 1:
                self._changed.notify_all()
            return item

    def wait_open(self, timeout: float) -> bool:
        """Wait for the row to be ready; false if it is not after `timeout` seconds. Raises what went wrong."""
        with self._changed:
            self._changed.wait_for(lambda: self.opened or self._over, timeout)
        if self.error is not None:
            raise self.error
        return self.opened

    def close(self) -> None:
        """End it now; the row is free for others."""
        with self._changed:
            self.closed = self.inbox.finished = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether no more items will ever come."""
        return self._over and not self._items

    @property
    def waiting_items(self) -> int:
        """Items not yet read."""
        return len(self._items)

    @property
    def buffered(self) -> int:
        """Samples fed and not yet used."""
        return self.inbox.level

    @property
    def dropped_in(self) -> int:
        """Samples lost because the model was late."""
        return self.inbox.dropped

    # The scheduler --------------------------------------------------------------------------------------------------

    @property
    def stalled(self) -> bool:
        """Whether the row stands still because its client does not read."""
        return self.bounds.when_full is WhenFull.PAUSE and len(self._items) >= self.bounds.items

    def put(self, items: list[Any]) -> None:
        """Hand out items. Raises `SlowReader` where a client that does not read is not waited for."""
        bounds = self.bounds
        with self._changed:
            for item in items:
                if len(self._items) >= bounds.items and bounds.when_full is not WhenFull.PAUSE:
                    if bounds.when_full is WhenFull.END:
                        raise SlowReader(f"{bounds.items} results wait to be read; read them faster.")
                    old = self._items.popleft()
                    self.dropped_out += 1
                    if bounds.fold is not None:
                        newer = self._items.popleft() if self._items else item
                        folded = bounds.fold(old, newer)
                        if newer is item:
                            item = folded
                        else:
                            self._items.appendleft(folded)
                self._items.append(item)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """No more items will come."""
        with self._changed:
            self._over = self.inbox.finished = True
            self.error = self.error or error
            self._changed.notify_all()

    def tell(self) -> None:
        """Say that there is something new."""
        if self._notify is None:
            return
        try:
            self._notify()
        except (Exception, SystemExit) as e:
            # The client's event loop has gone, and the client with it; or what it was to be called with is broken.
            self.error = self.error or e
            self.close()


@dataclass(frozen=True)
class Mark:
    """Asks for `Marker(id)` in its place."""

    id: int


@dataclass(frozen=True)
class Flush:
    pass


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class EndTurn:
    pass


@dataclass(frozen=True)
class Voice:
    values: np.ndarray
