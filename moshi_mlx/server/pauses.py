"""How surely a speaker has paused, for every frame of a stream: by the model's own heads, or by the time since the last word or sound.

Clients of the Rust server take a turn's end from these figures and so want them of every model.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from ..speech_to_text.live import LiveWord
from ..speech_to_text.rows import HeardFrame

HEADS = 4
# Seconds of quiet after which each figure says as likely as not, and twice of which it is sure. Kyutai's heads foresee pauses of 0.5, 1, 2
# and 3 s while they begin; who only measures has to wait, so these are shorter.
QUIET = (0.25, 0.5, 0.75, 1.5)
# What is so much louder than the quietest of late, and louder than this (of full scale), for two frames on end, is a voice.
ABOVE_FLOOR, FAINTEST = 4.0, 0.003
# The floor rises by this factor a frame, so that a room that grows louder is no speaker for ever: tenfold in 9 s.
RISE = 1.02


class Pauses:
    """Of one stream. Everything that is fed to the model goes through `hear` too; `of` takes its frames in their order."""

    def __init__(self, heads: int, frame_size: int = 1920, sample_rate: int = 24000):
        self._own, self._size, self._seconds = heads >= HEADS - 1, frame_size, frame_size / sample_rate
        self._rest = np.zeros(0, np.float32)
        self._levels: deque[float] = deque()
        self._floor, self._loud, self._quiet = FAINTEST, 0, 0.0

    def hear(self, pcm: np.ndarray) -> None:
        """The client's sound, float32 `[n]`."""
        if self._own:
            return
        pcm = np.concatenate([self._rest, np.clip(np.nan_to_num(pcm), -1, 1)])
        whole = len(pcm) - len(pcm) % self._size
        frames, self._rest = pcm[:whole].reshape(-1, self._size), pcm[whole:]
        self._levels.extend(np.sqrt(np.mean(np.square(frames), axis=1)).tolist())

    def of(self, frame: HeardFrame) -> list[float]:
        """At least three probabilities for a frame of the client's (`index` not None): of a short pause, of longer ones."""
        if self._own:
            return [float(p) for p in frame.pauses]
        level = self._levels.popleft() if self._levels else 0.0
        self._loud = self._loud + 1 if level > max(ABOVE_FLOOR * self._floor, FAINTEST) else 0
        self._floor = min(max(level, FAINTEST / ABOVE_FLOOR), self._floor * RISE)
        self._quiet = 0.0 if self._loud > 1 else self._quiet + self._seconds
        assert frame.index is not None
        for event in frame.events:
            if isinstance(event, LiveWord):
                self._quiet = min(self._quiet, max(0.0, (frame.index + 1) * self._seconds - event.start))
        return [min(1.0, self._quiet / (2 * limit)) for limit in QUIET]
