"""Speech faster or slower at the same pitch, while it comes.

Pieces of the sound are laid over each other closer together or further apart than they were, each where it goes on best from the
one before (WSOLA: Verhelst and Roelands, 1993).
"""

from __future__ import annotations

import numpy as np

SLOWEST, FASTEST = 0.25, 4.0
# Seconds from piece to piece, which is half of a piece: longer than the period of a deep voice, shorter than most sounds of speech. And how
# far from its place a piece is looked for, which has to be half a period at least.
HOP_SECONDS, SEARCH_SECONDS = 0.015, 0.008


class Tempo:
    """`speed` times as fast, mono float32. `feed` any number of samples, then `finish`."""

    def __init__(self, speed: float, sample_rate: int = 24000):
        self.speed = speed
        self._hop, self._search = int(HOP_SECONDS * sample_rate), int(SEARCH_SECONDS * sample_rate)
        fade = np.sin(0.5 * np.pi * (np.arange(self._hop) + 0.5) / self._hop) ** 2
        self._rise = fade.astype(np.float32)
        # Sound from the sample `_start` on; the piece laid last begins at `_last`.
        self._sound, self._start = np.zeros(0, np.float32), 0
        self._last, self._pieces = 0, 0

    def feed(self, pcm: np.ndarray) -> np.ndarray:
        """The samples `[m]` that `pcm [n]` completes."""
        if self.speed == 1:
            return pcm
        self._sound = np.concatenate([self._sound, pcm.astype(np.float32, copy=False)])
        return self._laid(self._start + len(self._sound))

    def finish(self) -> np.ndarray:
        """What is left; the whole is as long as the sound that was fed, divided by `speed`, or part of a piece longer."""
        if self.speed == 1:
            return np.zeros(0, np.float32)
        end = self._start + len(self._sound)
        length = round(end / self.speed)
        # Silence in which the last pieces are found.
        self._sound = np.pad(self._sound, (0, int(self._hop * (self.speed + 3)) + self._search))
        laid = self._pieces * self._hop
        rest = self._laid(self._start + len(self._sound))
        return rest[: max(0, length - laid)]

    def _laid(self, end: int) -> np.ndarray:
        """As many more pieces as the sound up to `end` has."""
        hop, search, out = self._hop, self._search, []
        while True:
            place = round(self._pieces * hop * self.speed)
            # What would follow the last piece has to be there, and every place in which the next one may be found.
            if max(place + search, self._last + hop) + hop > end:
                break
            if self._pieces == 0:
                out.append(self._at(0, hop))
            else:
                follows = self._at(self._last + hop, hop)
                self._last = self._best(place, follows)
                out.append(follows * self._rise[::-1] + self._at(self._last, hop) * self._rise)
            self._pieces += 1
        keep = min(self._last + hop, round(self._pieces * hop * self.speed) - search) - self._start
        if keep > 0:
            self._sound, self._start = self._sound[keep:], self._start + keep
        return np.concatenate(out) if out else np.zeros(0, np.float32)

    def _at(self, position: int, count: int) -> np.ndarray:
        return self._sound[position - self._start : position - self._start + count]

    def _best(self, place: int, follows: np.ndarray) -> int:
        """Where near `place` the sound is most like what follows."""
        first = max(self._start, place - self._search)
        around = self._at(first, place + self._search - first + self._hop)
        likeness = np.correlate(around, follows, "valid")
        energy = np.cumsum(np.concatenate([[0.0], np.square(around, dtype=np.float64)]))
        loudness = np.sqrt(energy[self._hop :] - energy[: -self._hop]) + 1e-6
        return first + int(np.argmax(likeness / loudness))
