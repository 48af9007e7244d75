"""The events of a stream put together as a transcript."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..text import Word
from .live import Event, LiveWord, LiveWordEnd
from .transcribe import Transcript
from .words import spoken, within


class Collected:
    """Words as they become known. `feed` the events of every frame, in their order."""

    def __init__(self) -> None:
        self._words: list[Word] = []
        self._shown = False

    def feed(self, events: Sequence[Event]) -> list[str]:
        """The words that are new."""
        new = []
        for event in events:
            if isinstance(event, LiveWord):
                # The end of one that says nothing is not the end of the word before it.
                self._shown = bool(event.text.strip())
                if self._shown:
                    new.append(event.text.strip())
                    self._words.append(Word(new[-1], event.start, math.inf))
            elif isinstance(event, LiveWordEnd) and self._shown:
                last = self._words[-1]
                self._words[-1] = Word(last.text, last.start, event.end)
        return new

    def transcript(self, source: str, duration: float, frame_seconds: float) -> Transcript:
        """All of it, of a recording of `duration` seconds."""
        words = [spoken(w) for w in within(self._words, duration, frame_seconds)]
        return Transcript(source, " ".join(w.text for w in words), words, duration)
