"""Live transcription: words as soon as they are known, and the ends of turns (family.md 1.4, 1.5).

At the end of a turn the last words are still as far behind as the model's delay. They are fetched at once by feeding
silence as fast as the machine can (the flush), after which live audio goes on. Times leave this silence out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .listener import Listener
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


class LiveText:
    """What the tokens of one live stream say: words, ends of turns, and how much silence is to be put in.

    `delay` and `silence_prefix` in seconds are those of the checkpoint, whose codec has `rate` frames a second. Without `turns` no
    ends of turns are reported; without `flush` their last words come `delay` later, with the live audio.
    """

    def __init__(
        self,
        tokenizer: SentencePieceProcessor,
        rate: float,
        delay: float,
        silence_prefix: float = 0.0,
        turns: TurnDetector | None = None,
        flush: bool = True,
    ):
        self._words = WordStream(tokenizer, rate, delay)
        self._turns, self._flush = turns, flush
        self._timeline = Timeline(rate)
        self._said: list[str] = []
        # When the end of a turn was known whose last words are still being fetched.
        self._turn_end: float | None = None
        self.fed = 0  # frames so far, silence included
        self.silence = 0  # frames of silence to feed before any more audio
        self.flush_frames = math.ceil(delay * rate) + 1
        self._put_in(math.ceil(silence_prefix * rate))

    @property
    def seconds(self) -> float:
        """Live audio heard so far."""
        return self._timeline.seconds(self.fed)

    def began(self, token: int) -> list[Event]:
        """The token of the model's first step, before any audio."""
        return self._events(token)

    def heard(self, token: int, pauses: np.ndarray) -> list[Event]:
        """The token and the pause probabilities `[heads]` of a frame of live audio."""
        self.fed += 1
        events = self._events(token)
        spoke = any(isinstance(e, LiveWord) for e in events)
        if self._turns is None or not self._turns.feed(pauses, spoke):
            return events
        if not self._flush:
            return [*events, TurnEnd(self.seconds, self._turn_text())]
        self._turn_end = self.seconds
        self.flush()
        return events

    def filled(self, token: int) -> list[Event]:
        """The token of a frame of silence that was put in."""
        self.fed += 1
        self.silence -= 1
        events = self._events(token)
        if not self.silence and self._turn_end is not None:
            assert self._turns is not None
            self._turns.reported()
            events.append(TurnEnd(self._turn_end, self._turn_text()))
            self._turn_end = None
        return events

    def flush(self) -> None:
        """Silence is to be put in until all that was heard is written."""
        self._put_in(self.flush_frames)

    def finish(self) -> list[Event]:
        """No more audio, and the silence of a flush has been fed: what is left."""
        events = self._understood(self._words.flush())
        if self._turns is not None and self._said:
            events.append(TurnEnd(self.seconds, self._turn_text()))
        return events

    def _put_in(self, frames: int) -> None:
        self._timeline.insert(self.fed + self.silence, frames)
        self.silence += frames

    def _events(self, token: int) -> list[Event]:
        return self._understood(self._words.feed(token))

    def _understood(self, found: Sequence[WordStart | WordEnd]) -> list[Event]:
        events: list[Event] = []
        for event in found:
            if isinstance(event, WordStart):
                text = printable(event.text)
                if self._turns is not None:
                    self._said.append(text)
                events.append(LiveWord(text, self._timeline.seconds(event.frame)))
            else:
                events.append(LiveWordEnd(self._timeline.seconds(event.frame)))
        return events

    def _turn_text(self) -> str:
        said, self._said = self._said, []
        return " ".join(t for t in said if t)


class LiveTranscriber:
    """One live stream. `feed` a frame at a time; every call gives what became known. Options are those of `LiveText`."""

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
        self._text = LiveText(tokenizer, listener.mimi.frame_rate, delay, silence_prefix, turns, flush)
        self._nothing = np.zeros((1, listener.mimi.frame_size), np.float32)

    @property
    def seconds(self) -> float:
        """Live audio heard so far."""
        return self._text.seconds

    def start(self) -> None:
        """Make the first step and feed the silence some models expect. Slow: call it before audio is waiting."""
        self._text.began(int(self.listener.read([self.listener.start()]).tokens[0, 0]))
        self._fill()
        self.listener.warm_up()

    def feed(self, pcm: np.ndarray) -> list[Event]:
        """The next 80 ms, float32 `[1920]`."""
        heard = self.listener.listen(pcm[None])
        events = self._text.heard(int(heard.tokens[0, 0]), heard.pauses[0, 0])
        return events + self._fill()

    def finish(self) -> list[Event]:
        """No more audio: the words still under way."""
        self._text.flush()
        return self._fill() + self._text.finish()

    def _fill(self) -> list[Event]:
        """Feed the silence that is to be put in."""
        events: list[Event] = []
        while self._text.silence:
            events += self._text.filled(int(self.listener.listen(self._nothing).tokens[0, 0]))
        return events
