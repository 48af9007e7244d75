"""A bounded stream of samples between two threads: one writes and never waits, one reads and waits at most as long as it says.

When the reader falls behind by more than the capacity, the oldest samples are overwritten and the reader is told how many.
"""

from __future__ import annotations

import threading
import time

import numpy as np


class Ring:
    """The last `capacity` samples (float32) of a stream.

    `write` may be called by one thread (an audio callback: nothing is allocated, and the lock is taken only to wake a
    waiting reader, who holds it for a few comparisons); everything else belongs to one other thread.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self.written = 0  # samples since the beginning; only the writer changes it
        self.read = 0  # position of the reader, who alone changes it
        self._claimed = 0  # `written` after the write under way
        self._samples = np.zeros(capacity, np.float32)
        self._wanted = 0
        self._woken = False
        self._ready = threading.Condition()

    @property
    def level(self) -> int:
        """Samples written and not yet read, some of which may be overwritten already."""
        return self.written - self.read

    # The writer ---------------------------------------------------------------------------------------------------

    def write(self, x: np.ndarray) -> None:
        """Append `x [n]`."""
        skipped = max(0, len(x) - self.capacity)
        n = len(x) - skipped
        self._claimed = self.written + len(x)
        at = (self.written + skipped) % self.capacity
        first = min(n, self.capacity - at)
        self._samples[at : at + first] = x[skipped : skipped + first]
        self._samples[: n - first] = x[skipped + first :]
        self.written = self._claimed
        if self._wanted and self.level >= self._wanted:
            with self._ready:
                self._ready.notify()

    # The reader ---------------------------------------------------------------------------------------------------

    def wait(self, n: int, timeout: float) -> bool:
        """Block until `n` samples can be read; false after `timeout` seconds or a `wake`."""
        deadline = time.monotonic() + timeout
        with self._ready:
            self._wanted = n
            while self.level < n and not self._woken:
                left = deadline - time.monotonic()
                if left <= 0 or not self._ready.wait(left):
                    break
            self._wanted, self._woken = 0, False
            return self.level >= n

    def wake(self) -> None:
        """End the reader's present or next `wait`. Any thread, also a signal handler."""
        with self._ready:
            self._woken = True
            self._ready.notify()

    def take(self, out: np.ndarray) -> int:
        """Move the oldest `len(out)` samples into `out`; the caller knows they are there. Returns samples lost before them."""
        lost = 0
        while True:
            late = self._claimed - self.capacity - self.read
            if late > 0:
                lost, self.read = lost + late, self.read + late
            self._copy(self.read, out)
            # The writer may have come round while we copied.
            if self._claimed - self.read <= self.capacity:
                self.read += len(out)
                return lost

    def peek(self, out: np.ndarray) -> np.ndarray:
        """As `take`, leaving the samples where they are; only for a reader that keeps up. Returns `out`."""
        self._copy(self.read, out)
        return out

    def skip(self, n: int) -> None:
        """Pass over the oldest `n` samples."""
        self.read += n

    def _copy(self, start: int, out: np.ndarray) -> None:
        at = start % self.capacity
        first = min(len(out), self.capacity - at)
        out[:first] = self._samples[at : at + first]
        out[first:] = self._samples[: len(out) - first]
