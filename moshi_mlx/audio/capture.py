"""What a microphone's callback fills and the model thread reads, one 80 ms frame at a time.

The backlog is bounded: when more than `max_lag` seconds wait behind the frame that is due, the oldest frames are dropped and
counted.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from .resample import Resampler
from .ring import Ring
from .samples import usable

MAX_LAG = 0.24
CAPACITY_SECONDS = 5.0
FADE_SECONDS = 0.005


class Capture:
    """`feed` belongs to the device's callback, everything else to the reading thread.

    Takes samples at `rate` in any number of channels (`channel`: the only one to use, from 0; else they are averaged), gives
    frames float32 `[frame_size]` at `sample_rate`.
    """

    def __init__(
        self,
        rate: int,
        frame_size: int = 1920,
        sample_rate: int = 24000,
        max_lag: float = MAX_LAG,
        channel: int | None = None,
    ):
        self.rate, self.frame_size, self.sample_rate = rate, frame_size, sample_rate
        self.max_lag, self.channel = max_lag, channel
        self.dropped = 0  # frames given up because the reader was late
        self.invalid = 0  # samples that were not numbers
        self.completed = 0.0  # when the last sample of the frame read last was fed
        self.received = 0  # device samples so far
        self._ring = Ring(round(CAPACITY_SECONDS * rate))
        self._mono = np.zeros(self._ring.capacity, np.float32)
        # Ends of blocks: position and moment. A block lasts 2 ms or more.
        self._ends: deque[tuple[int, float]] = deque(maxlen=4096)
        self._resampler = Resampler(rate, sample_rate)
        self._rest = np.zeros(0, np.float32)
        self._step = rate / sample_rate
        self._fade_in = False

    # The callback -----------------------------------------------------------------------------------------------------

    def feed(self, block: np.ndarray, end: float = 0.0) -> None:
        """A block `[n]` or `[n, channels]` that ends at the moment `end`, in seconds on any clock."""
        n = min(len(block), len(self._mono))
        if block.ndim == 1:
            mono = block
        elif self.channel is not None:
            mono = block[:, self.channel]
        elif block.shape[1] == 1:
            mono = block[:, 0]
        else:
            mono = np.mean(block[:n], axis=1, out=self._mono[:n])
        self._ends.append((self._ring.written + len(mono), end))
        self._ring.write(mono)
        self.received += len(mono)

    # The reading thread -----------------------------------------------------------------------------------------------

    @property
    def waiting(self) -> float:
        """Seconds captured and not yet read."""
        return self._ring.level / self.rate + len(self._rest) / self.sample_rate

    def read(self, timeout: float) -> np.ndarray | None:
        """The oldest frame that the bound on the backlog allows; None when `timeout` seconds bring none, or after `wake`."""
        self._drop()
        while len(self._rest) < self.frame_size:
            missing = math.ceil((self.frame_size - len(self._rest)) * self._step)
            if not self._ring.wait(missing, timeout):
                return None
            chunk = np.empty(missing, np.float32)
            self._lose(self._ring.take(chunk))
            self._rest = np.concatenate([self._rest, self._resampler(self._usable(chunk))])
        frame, self._rest = self._rest[: self.frame_size], self._rest[self.frame_size :]
        self.completed = self._moment(self._ring.read - len(self._rest) * self._step)
        return self._joined(frame)

    def steady(self, seconds: float, timeout: float) -> bool:
        """Wait up to `timeout` for `seconds` of sound, then forget it: what devices deliver at first is old."""
        if not self._ring.wait(round(seconds * self.rate), timeout):
            return False
        self.discard()
        return True

    def wake(self) -> None:
        """Make the present or next `read` return at once. Any thread, also a signal handler."""
        self._ring.wake()

    def discard(self) -> None:
        """Forget what has been captured so far, without counting it as dropped."""
        self._ring.skip(self._ring.level)
        self._rest = self._rest[:0]
        self._fade_in = True

    def _drop(self) -> None:
        """Keep to the bound: the frame that is due, and `max_lag` seconds behind it."""
        frame = self.frame_size / self.sample_rate
        while self.waiting > frame + self.max_lag + 1e-9:
            self._ring.skip(min(self._ring.level, round(frame * self.rate)))
            self.dropped += 1
            self._fade_in = True

    def _lose(self, samples: int) -> None:
        if samples:
            self.dropped += math.ceil(samples / self._step / self.frame_size)
            self._fade_in = True

    def _moment(self, position: float) -> float:
        """When the device sample before `position` was fed."""
        while self._ends and self._ends[0][0] < position - 1:
            self._ends.popleft()
        if not self._ends:
            return 0.0
        written, end = self._ends[0]
        return end - (written - position) / self.rate

    def _usable(self, x: np.ndarray) -> np.ndarray:
        """Only numbers within -1..1, before a filter spreads what is none."""
        x, invalid = usable(x)
        self.invalid += invalid
        return x

    def _joined(self, frame: np.ndarray) -> np.ndarray:
        """Without a click where something was left out before."""
        if not self._fade_in:
            return frame
        self._fade_in = False
        return faded_in(frame, self.sample_rate)


def faded_in(frame: np.ndarray, sample_rate: int) -> np.ndarray:
    """A frame that follows a gap, without the click."""
    n = round(FADE_SECONDS * sample_rate)
    return np.concatenate([frame[:n] * np.linspace(0, 1, n, dtype=np.float32), frame[n:]])
