"""The end of a dialogue with a recording: whoever asked hears the answer to its end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ..audio.loudness import decibels
from ..defaults import MOST_SECONDS, QUIET_SECONDS
from .session import Frame

FRAME_RATE, FRAME_SIZE = 12.5, 1920
# Below this is what a codec makes of silence, not speech.
QUIET_DECIBELS = -45.0


class Steps(Protocol):
    """A session, or what steps like one."""

    def step(self, pcm: np.ndarray) -> Frame: ...


class Answer:
    """Silence to be heard after the recording, until the reply has been silent for a while or `MOST_SECONDS` have gone by.

    `see` is shown every frame of the reply; `cut` tells, at the end, that it had not fallen silent.
    """

    def __init__(self, frame_rate: float):
        self._enough, self._most = round(QUIET_SECONDS * frame_rate), round(MOST_SECONDS * frame_rate)
        self._quiet = 0
        self.cut = False

    def frames(self, size: int) -> Iterator[np.ndarray]:
        """What follows the recording, float32 `[size]` each."""
        # Silence while the user still spoke says nothing of what is to come.
        self._quiet = 0
        for _ in range(self._most):
            if self._quiet >= self._enough:
                break
            yield np.zeros(size, np.float32)
        self.cut = self._quiet < self._enough

    def told(self, name: str) -> str:
        """What to say of an answer that was cut."""
        return f"{name}: cut after {MOST_SECONDS:.0f} s, the model was still speaking; --tail SECONDS listens longer"

    def see(self, text: str, pcm: np.ndarray) -> None:
        """The newest frame of the reply: its text and its sound `[n]`."""
        silent = not text.strip() and decibels(pcm) < QUIET_DECIBELS
        self._quiet = self._quiet + 1 if silent else 0


def rest_of_answer(talker: Steps, answer: Answer) -> Iterator[Frame]:
    """The frames in which `talker` goes on after a recording."""
    for silence in answer.frames(FRAME_SIZE):
        frame = talker.step(silence)
        answer.see(frame.text, frame.pcm)
        yield frame
