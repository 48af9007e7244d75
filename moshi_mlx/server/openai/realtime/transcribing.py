"""A transcription session: words as they are understood, in items that a pause ends, or the client."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ....speech_to_text.live import LiveWord
from ....speech_to_text.rows import HeardFrame, Marker
from ...opus import Pcm
from .. import formats
from ..errors import ApiError, bad, check
from .events import (
    FORMAT,
    Control,
    Event,
    Received,
    check_format,
    decoded,
    error,
    inside,
    new_id,
    session_of,
    unknown,
)
from .turns import STARTED, STOPPED, detector

TRANSCRIPTION = "transcription"
DETECTION = {"type": "server_vad"}
# A word is known when the frame after it has been heard, and may begin somewhat later than it should.
LATEST_FRAMES = 4
_WORDS = "conversation.item.input_audio_transcription"


class PauseFigures(Protocol):
    """See `server.pauses.Pauses`."""

    def hear(self, pcm: np.ndarray) -> None: ...

    def of(self, frame: HeardFrame) -> Sequence[float]: ...


@dataclass
class _Item:
    """What was said in one go, from `begun` on, in seconds of the stream; words that begin after `until` are those of another.

    Of one that is `cleared` the client hears nothing.
    """

    id: str
    begun: float
    words: list[str] = field(default_factory=list)
    until: float = math.inf
    seconds: float = 0.0
    cleared: bool = False


class Transcription:
    """A session on a stream. `check_model(name)` raises `ApiError` for a name that is none of this model; its text is `delay` seconds late.

    Sound may be sent faster than it is heard: which item a word belongs to is told by when it was said, not by when it is known.
    """

    patient = had_beta = True

    def __init__(
        self,
        model: str,
        stream: Control,
        pauses: PauseFigures,
        check_model: Callable[[str], Any] = lambda name: None,
        delay: float = 0.5,
        frame_size: int = 1920,
        sample_rate: int = 24000,
    ):
        self._model, self._stream, self._pauses, self._check_model = model, stream, pauses, check_model
        self._delay, self._sample_rate = delay, sample_rate
        self._frame_size, self._frame_seconds = frame_size, frame_size / sample_rate
        self._id, self._pcm = new_id("sess"), Pcm("pcm_s16le")
        self._language, self._prompt = "", ""
        self._detection: Any = DETECTION
        self._turns = detector(DETECTION)
        # Frames that were heard, samples that were appended, and how many of these were committed or cleared.
        self._frames = self._samples = self._done = 0
        self._item: _Item | None = None
        # Items that have ended and whose last words are being fetched, by the mark that comes after them.
        self._ending: deque[tuple[int, _Item]] = deque()
        self._marks = 0
        self._last: str | None = None

    def begin(self) -> list[Event]:
        return [{"type": "session.created", "session": self._session()}]

    def _session(self) -> Event:
        transcription = {"model": self._model, "language": self._language or None, "prompt": self._prompt or None}
        return {
            "type": TRANSCRIPTION,
            "object": "realtime.transcription_session",
            "id": self._id,
            "include": None,
            "audio": {
                "input": {
                    "format": FORMAT,
                    "transcription": transcription,
                    "noise_reduction": None,
                    "turn_detection": self._detection,
                }
            },
        }

    # What the client sends ------------------------------------------------------------------------------------------

    def receive(self, event: Event) -> Received:
        kind = event["type"]
        if kind == "input_audio_buffer.append":
            pcm = decoded(event, self._pcm)
            self._samples += len(pcm)
            self._pauses.hear(pcm)
            return Received(pcm=pcm)
        if kind == "session.update":
            return Received(self._update(event))
        if kind == "input_audio_buffer.commit":
            if self._samples == self._done:
                raise bad(
                    "there is nothing to commit: no sound was appended since the last time.",
                    None,
                    "input_audio_buffer_commit_empty",
                )
            told = self._committed(self._samples, self._turns is not None and self._turns.speaking)
            self._cut()
            return Received(told)
        if kind == "input_audio_buffer.clear":
            if self._samples > self._done:
                self._ends(self._samples).cleared = True
                self._cut()
            return Received([{"type": "input_audio_buffer.cleared"}])
        raise unknown(event)

    def _update(self, event: Event) -> list[Event]:
        session_of(event, TRANSCRIPTION)
        place = ("session", "audio", "input")
        given = inside(event, *place)
        check_format(event, *place, "format")
        transcription = inside(event, *place, "transcription")
        if transcription is not None:
            model = inside(event, *place, "transcription", "model")
            if model is not None:
                self._check_model(check("session.audio.input.transcription.model", model, _text))
            language = inside(event, *place, "transcription", "language")
            prompt = inside(event, *place, "transcription", "prompt")
            # Noted; these models find out themselves which of their languages is spoken.
            self._language = language if isinstance(language, str) else self._language
            self._prompt = prompt if isinstance(prompt, str) else self._prompt
        if given is not None and "turn_detection" in given:
            self._turns = detector(given["turn_detection"])
            self._detection = given["turn_detection"]
        return [{"type": "session.updated", "session": self._session()}]

    # What the model gives -------------------------------------------------------------------------------------------

    def put(self, item: HeardFrame | Marker) -> list[Event]:
        if isinstance(item, Marker):
            return self._completed(lambda mark, _: mark <= item.id)
        events: list[Event] = []
        new: list[LiveWord] = []
        for word in item.events:
            if isinstance(word, LiveWord) and word.text.strip():
                events += self._completed(_by(word.start))
                if not self._ending:
                    new.append(word)
                elif not self._ending[0][1].cleared:
                    events.append(self._delta(self._ending[0][1], word))
        changed = None
        if item.index is not None:
            self._frames = item.index + 1
            figures = self._pauses.of(item)
            changed = None if self._turns is None else self._turns.feed(figures, bool(new))
            if item.index * self._frame_size < self._done:
                # Its turn had ended before it was heard.
                changed = None
                self._cut()
        if changed == STARTED:
            start = new[0].start if new else self._seconds - self._frame_seconds
            events.append(self._speech("started", self._current(start), audio_start_ms=round(1000 * start)))
        events += [self._delta(self._current(), word) for word in new]
        if changed == STOPPED:
            events += self._committed(self._frames * self._frame_size, True)
        # Words of it would have come by now.
        late = self._seconds - self._delay - LATEST_FRAMES * self._frame_seconds
        return events + self._completed(_by(late))

    @property
    def _seconds(self) -> float:
        """Of sound that was heard."""
        return self._frames * self._frame_seconds

    def _speech(self, change: str, item: _Item, **when: int) -> Event:
        return {"type": f"input_audio_buffer.speech_{change}", **when, "item_id": item.id}

    def _current(self, begun: float = math.inf) -> _Item:
        """The item under way. Where there is none a new one, which began at `begun` or now, but not in sound of an earlier one."""
        if self._item is None:
            now = self._seconds - self._frame_seconds
            self._item = _Item(new_id("item"), max(self._done / self._sample_rate, min(begun, now)))
        return self._item

    def _delta(self, item: _Item, word: LiveWord) -> Event:
        text = word.text.strip()
        delta = f" {text}" if item.words else text
        item.words.append(text)
        return {"type": f"{_WORDS}.delta", "item_id": item.id, "content_index": 0, "delta": delta}

    def _cut(self) -> None:
        """Speech in sound that the client has committed or cleared begins no turn."""
        if self._turns is not None:
            self._turns.cut()

    def _ends(self, until: int) -> _Item:
        """The item under way ended at `until` samples: its last words are wanted now."""
        item, seconds = self._current(), until / self._sample_rate
        # A word is said to begin up to a frame late.
        item.until = seconds + self._frame_seconds
        # Who ends turns means all that was appended.
        item.seconds = seconds - (item.begun if self._turns is not None else self._done / self._sample_rate)
        self._item, self._done = None, until
        self._marks += 1
        self._ending.append((self._marks, item))
        self._stream.flush()
        self._stream.mark(self._marks)
        return item

    def _committed(self, until: int, spoken: bool) -> list[Event]:
        """The item under way ended at `until` samples, and with it the speech whose begin was told, if it is `spoken`."""
        item, before = self._ends(until), self._last
        self._last = item.id
        end = round(1000 * until / self._sample_rate)
        content = [{"type": "input_audio", "transcript": None}]
        message = {
            "id": item.id, "object": "realtime.item", "type": "message", "status": "completed", "role": "user", "content": content,
        }  # fmt: skip
        return [
            *([self._speech("stopped", item, audio_end_ms=end)] if spoken else []),
            {"type": "input_audio_buffer.committed", "item_id": item.id, "previous_item_id": before},
            {"type": "conversation.item.added", "item": message, "previous_item_id": before},
        ]

    def _completed(self, over: Callable[[int, _Item], bool]) -> list[Event]:
        """Items of which nothing more will come, by their mark and what they are."""
        events: list[Event] = []
        while self._ending and over(*self._ending[0]):
            _, item = self._ending.popleft()
            if item.cleared:
                continue
            events.append(
                {
                    "type": f"{_WORDS}.completed",
                    "item_id": item.id,
                    "content_index": 0,
                    "transcript": " ".join(item.words),
                    "usage": formats.usage(item.seconds),
                }
            )
        return events

    def end(self, e: ApiError | None) -> list[Event]:
        return [] if e is None else [error(e)]


def _by(seconds: float) -> Callable[[int, _Item], bool]:
    """Whether an item had ended at a time."""
    return lambda _, item: item.until <= seconds


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise bad(f"{name} should be text.", name, "invalid_type")
    return value
