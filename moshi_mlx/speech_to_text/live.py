"""Live transcription: words as soon as they are known, and the ends of turns (family.md 1.4, 1.5).

At the end of a turn the last words are still as far behind as the model's delay. They are fetched at once by feeding
silence as fast as the machine can (the flush), after which live audio goes on. Times leave this silence out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .listener import HeardFrames, Listener
from .pauses import TurnDetector
from .timeline import Timeline
from .words import WordEnd, WordStart, WordStream, printable

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


@dataclass(frozen=True)
class LiveWord:
    """A word was said; `start` in seconds since listening began."""

    text: str
    start: float


@dataclass(frozen=True)
class LiveWordEnd:
    """The last word ended at `end` seconds."""

    end: float


@dataclass(frozen=True)
class TurnEnd:
    """The speaker has finished: `time` is when this was known, `text` what was said since the last turn."""

    time: float
    text: str


Event = LiveWord | LiveWordEnd | TurnEnd


class LiveTranscriber:
    """One live stream. `feed` a frame at a time; every call gives what became known.

    `delay` and `silence_prefix` in seconds are those of the checkpoint. Without `turns` no ends of turns are reported; without
    `flush` their last words come `delay` later, with the live audio.
    """

    def __init__(
        self,
        listener: Listener,
        tokenizer: SentencePieceProcessor,
        delay: float,
        silence_prefix: float = 0.0,
        turns: TurnDetector | None = None,
        flush: bool = True,
    ):
        assert listener.mimi is not None
        self.listener = listener
        self._mimi = listener.mimi
        rate = self._mimi.frame_rate
        self._words = WordStream(tokenizer, rate, delay)
        self._turns, self._flush = turns, flush
        self._timeline = Timeline(rate)
        self._fed = 0
        self._said: list[str] = []
        self._flush_frames = math.ceil(delay * rate) + 1
        self._prefix_frames = math.ceil(silence_prefix * rate)

    @property
    def seconds(self) -> float:
        """Live audio heard so far."""
        return self._timeline.seconds(self._fed)

    def start(self) -> None:
        """Make the first step and feed the silence some models expect. Slow: call it before audio is waiting."""
        self._understand(self.listener.read([self.listener.start()]))
        self._silence(self._prefix_frames)
        self.listener.warm_up()

    def feed(self, pcm: np.ndarray) -> list[Event]:
        """The next 80 ms, float32 `[1920]`."""
        heard = self.listener.listen(pcm[None])
        self._fed += 1
        events = self._understand(heard)
        spoke = any(isinstance(e, LiveWord) for e in events)
        if self._turns is not None and self._turns.feed(heard.pauses[0, 0], spoke):
            time = self.seconds
            if self._flush:
                events += self._silence(self._flush_frames)
                self._turns.reported()
            events.append(TurnEnd(time, self._turn_text()))
        return events

    def finish(self) -> list[Event]:
        """No more audio: the words still under way."""
        events = self._silence(self._flush_frames)
        events += self._events(self._words.flush())
        if self._turns is not None and self._said:
            events.append(TurnEnd(self.seconds, self._turn_text()))
        return events

    def _silence(self, frames: int) -> list[Event]:
        """Feed silence that is not part of the recording."""
        self._timeline.insert(self._fed, frames)
        events: list[Event] = []
        for _ in range(frames):
            heard = self.listener.listen(np.zeros((1, self._mimi.frame_size), np.float32))
            self._fed += 1
            events += self._understand(heard)
        return events

    def _understand(self, heard: HeardFrames) -> list[Event]:
        return [e for token in heard.tokens[:, 0].tolist() for e in self._events(self._words.feed(token))]

    def _events(self, found: list) -> Iterator[Event]:
        for event in found:
            if isinstance(event, WordStart):
                text = printable(event.text)
                self._said.append(text)
                yield LiveWord(text, self._timeline.seconds(event.frame))
            elif isinstance(event, WordEnd):
                yield LiveWordEnd(self._timeline.seconds(event.frame))

    def _turn_text(self) -> str:
        said, self._said = self._said, []
        return " ".join(t for t in said if t)
