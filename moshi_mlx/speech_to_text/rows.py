"""Streams of speech in the rows of one batch: many clients are transcribed by one model, each as if alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import arguments
from ..checkpoint.loader import Checkpoint
from ..config.description import SttConfig
from ..config.reader import MOST
from ..defaults import PAUSE_HEAD, PAUSE_THRESHOLD
from ..engine.kind import Outcome
from ..engine.streams import Bounds, Flush, Inbox, Mark, WhenFull
from ..errors import InputError
from ..modules.sampling import Sampler
from .delays import delays_of
from .listener import Listener
from .live import Event, LiveText
from .pauses import TurnDetector

# A minute of backlog and the silence that ends it have room; results are many and small.
INPUT_SECONDS, OUTPUT_ITEMS = 120.0, 1024


@dataclass(frozen=True)
class Hear:
    """How one stream is transcribed. `turns`: tell ends of turns, by a pause head surer than `pause_threshold`; `flush` as in `LiveText`."""

    seed: int = 0
    turns: bool = False
    flush: bool = True
    pause_head: int = PAUSE_HEAD
    pause_threshold: float = PAUSE_THRESHOLD


@dataclass(frozen=True)
class HeardFrame:
    """What one frame of a stream gave: pause probabilities `[heads]` float32, and what became known with it.

    `index` counts the client's own frames from 0; it is None for silence that was put in, which is reported where it told something.
    """

    index: int | None
    pauses: np.ndarray
    events: list[Event]


@dataclass(frozen=True)
class Marker:
    """Everything that was fed before `Stream.mark(id)` has been transcribed."""

    id: int


class Transcriptions:
    """Rows of speech with one checkpoint. Belongs to the thread that made it; a `Kind` of the scheduler.

    `delays`: seconds the text lags behind and of silence heard first, for a checkpoint that does not say.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        rows: int,
        *,
        sampler: Sampler | None = None,
        delays: SttConfig | None = None,
        compile: bool = True,
        kv_bits: int | None = None,
    ):
        if loaded.mimi is None or loaded.tokenizer is None:
            raise InputError("speech-to-text needs the checkpoint's codec and tokenizer.")
        rows = arguments.whole("rows", rows, 1, MOST)
        self.checkpoint, self.rows = loaded, rows
        self._tokenizer, mimi = loaded.tokenizer, loaded.mimi
        self._delays = delays or delays_of(loaded.config) or SttConfig()
        self._listener = Listener(
            loaded.lm, mimi, rows, sampler=sampler, compile=compile, own_clocks=True, kv_bits=kv_bits
        )
        self._listener.warm_up()
        self._rate, self.frame_size, self.sample_rate = mimi.frame_rate, mimi.frame_size, mimi.sample_rate
        self._delay_frames = math.ceil(self._delays.audio_delay_seconds * self._rate)
        self._streams: list[_Stream | None] = [None] * rows
        self._silence = np.zeros(self.frame_size, np.float32)
        self.bounds = Bounds(INPUT_SECONDS, OUTPUT_ITEMS, WhenFull.END, 0, self.sample_rate, self.frame_size)

    @property
    def heads(self) -> int:
        """Pause heads of the model."""
        return self._listener.heads

    def join(self, row: int, options: Hear | None = None) -> Iterator[None]:
        """Begin a stream in `row`. Its first step is made with the others' next one, and so is the silence that some models expect."""
        hear = Hear() if options is None else arguments.kind("a stream's wishes", options, Hear, "a Hear")
        turns = TurnDetector(self.heads, hear.pause_head, hear.pause_threshold) if hear.turns else None
        delay, prefix = self._delays.audio_delay_seconds, self._delays.audio_silence_prefix_seconds
        self._listener.join(row, hear.seed)
        self._streams[row] = _Stream(LiveText(self._tokenizer, self._rate, delay, prefix, turns, hear.flush))
        yield

    def leave(self, row: int) -> None:
        self._streams[row] = None

    def ready(self, row: int, inbox: Inbox) -> bool:
        stream = self._stream(row)
        return stream.fresh or stream.text.silence > 0 or inbox.has_message or inbox.has_frame or inbox.at_end

    def collect(self, row: int, inbox: Inbox) -> _Turn:
        """What the row does in this step: its first one, silence, a message, the client's sound, or the end."""
        stream = self._stream(row)
        if stream.fresh or stream.text.silence:
            return _Turn(None if stream.fresh else self._silence, filling=True)
        while inbox.has_message:
            stream.take(inbox.message(), self._delay_frames)
        due = stream.due()
        if stream.text.silence:
            return _Turn(self._silence, filling=True, due=due)
        if inbox.has_frame:
            return _Turn(inbox.frame(), due=due)
        if inbox.at_end and not stream.flushed:
            stream.flushed = True
            stream.text.flush()
            return _Turn(self._silence, filling=True, due=due)
        return _Turn(None, due=due, over=inbox.at_end)

    def step(self, given: dict[int, _Turn]) -> dict[int, Outcome]:
        """One step of some rows, as `collect` gives it."""
        fresh = [row for row in given if self._stream(row).fresh]
        frames = {row: turn.pcm for row, turn in given.items() if turn.pcm is not None}
        heard = self._listener.listen_some(frames, fresh) if fresh or frames else None
        return {
            row: self._outcome(row, turn, None if heard is None else (int(heard.tokens[0, row]), heard.pauses[0, row]))
            for row, turn in given.items()
        }

    def _outcome(self, row: int, turn: _Turn, heard: tuple[int, np.ndarray] | None) -> Outcome:
        stream = self._stream(row)
        items: list[Any] = [Marker(id) for id in turn.due]
        if stream.fresh and heard is not None:
            stream.fresh = False
            stream.text.began(heard[0])
        elif turn.pcm is not None and heard is not None:
            token, pauses = heard
            if not turn.filling:
                items.append(HeardFrame(stream.frames, pauses, stream.text.heard(token, pauses)))
                stream.frames += 1
            elif events := stream.text.filled(token):
                items.append(HeardFrame(None, pauses, events))
            items += [Marker(id) for id in stream.due()]
        if turn.over:
            events = stream.text.finish()
            if events:
                items.append(HeardFrame(None, np.zeros(0, np.float32), events))
            items += [Marker(id) for _, id in stream.marks]
        return Outcome(items, turn.over)

    def _stream(self, row: int) -> _Stream:
        stream = self._streams[row]
        if stream is None:
            raise InputError(f"nobody is heard in row {row}: join it first.")
        return stream


@dataclass
class _Turn:
    """A row's part of a step: `pcm` `[1920]` or none, `filling` where it is not the client's; marks that are `due`; the end."""

    pcm: np.ndarray | None
    filling: bool = False
    due: list[int] = field(default_factory=list)
    over: bool = False


@dataclass
class _Stream:
    """What is known of a stream beside the model's state. `marks` are waited for until so many frames have been fed."""

    text: LiveText
    fresh: bool = True
    flushed: bool = False
    frames: int = 0
    marks: list[tuple[int, int]] = field(default_factory=list)

    def take(self, message: Any, delay: int) -> None:
        if isinstance(message, Mark):
            # Behind a flush it waits for all of the silence that was put in, with which the last word becomes complete.
            self.marks.append((self.text.fed + max(delay, self.text.silence), message.id))
        elif isinstance(message, Flush):
            self.text.flush()

    def due(self) -> list[int]:
        """Marks whose time has come."""
        found = [id for at, id in self.marks if at <= self.text.fed]
        self.marks = [(at, id) for at, id in self.marks if at > self.text.fed]
        return found
