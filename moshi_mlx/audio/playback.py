"""The buffer before a loudspeaker: frames come from the model at their own pace, blocks leave at the device's.

Playback begins when a frame is there and the hold (a short silence: the buffer's size) has passed. When frames come too late
the sound fades out within 5 ms, the underrun is counted, and the next frame fades in: nothing clicks. The gap, a block and a
fade longer than the frame was late, has then made the buffer large enough for the same delay again; only when gaps follow
each other closely are more frames gathered first.
The buffer follows what is needed: in quiet moments sound that lies in wait for no reason is cut short, and a buffer that
runs low is lengthened, so that devices whose clocks disagree stay together.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

import numpy as np

from .ring import Ring

FADE_SECONDS = 0.005
HOLD_STEP, MAX_HOLD = 0.02, 0.24
# Underruns closer than this are one trouble.
TROUBLE_SECONDS = 2.0
# More than this is never kept, whatever the reason.
MAX_SECONDS, CAPACITY_SECONDS = 0.64, 2.0
# The buffer is judged over a window; after each calm minute the hold gives back a quarter of what it has grown, 5 ms at least.
WINDOW_SECONDS, CALM_SECONDS, HOLD_GIVEN_BACK, LEAST_GIVEN_BACK = 5.0, 60.0, 0.25, 0.005
# A lone underrun says that the hold was too small: it does not come back to that size, but for a little every ten calm minutes.
LESSON, MOST_LEARNT, CALM_MINUTES_TO_FORGET = 0.01, 0.06, 10
TOLERANCE, TOO_MUCH = 0.02, 0.08
QUIET = 0.003  # -50 dBFS


class _State(Enum):
    WAITING = "silence, until a frame is there and the hold has passed"
    PLAYING = "more is there than this block and a fade need"
    ENDING = "what is left is played and faded out"


class Playback:
    """`push`, `stop` and `finish` belong to the model thread, `pull` to the device's callback.

    Samples are mono float32 at `rate`. `block` is the number of samples the device usually asks for, `jitter` how much later
    than usual a frame may come, in seconds, before it is missed. The counters may be read from anywhere.
    """

    def __init__(self, rate: int, block: int, jitter: float = 0.02):
        self.rate, self.block = rate, block
        self.underruns = 0
        self.dropped = 0  # samples given up to keep the bound
        self.pulled = 0  # samples the device has taken
        # Everything that was played, silence included: an echo canceller compares the microphone with it.
        self.reference = Ring(round(CAPACITY_SECONDS * rate))
        self.latencies = Ring(1024)  # seconds, one per frame begun
        self._ring = Ring(round(CAPACITY_SECONDS * rate))
        self._marks: deque[tuple[int, float]] = deque(maxlen=256)
        self._fade = max(1, round(FADE_SECONDS * rate))
        self._ramp = np.linspace(0, 1, self._fade + 1, dtype=np.float32)[:-1]
        self._spare = np.zeros(self._ring.capacity, np.float32)
        self._smallest_hold = block + self._fade + round(jitter * rate)
        self._hold = self._floor = self._smallest_hold
        self._state = _State.WAITING
        self._resume = self._hold  # samples of silence between the next frame's coming and its playing
        self._silence: int | None = None  # what is left of that; None while no frame has come
        self._risen = 0  # samples of the fade-in done
        self._left = 0  # samples of the ending
        self._stop_at: int | None = None
        self._finishing = False
        self._start_window()
        self._calm = round(TROUBLE_SECONDS * rate)  # samples since the last underrun or the last whole minute after it
        self._calm_minutes = 0
        self._overdue = False
        self._surplus = 0  # samples to cut (above 0) or to add (below 0) when it is quiet

    # The model thread -----------------------------------------------------------------------------------------------

    def push(self, pcm: np.ndarray, captured: float | None = None) -> None:
        """Queue `pcm [n]`. `captured`: when the user's frame it answers was complete, on the clock given to `pull`."""
        if captured is not None and len(pcm):
            self._marks.append((self._ring.written, captured))
        self._ring.write(pcm)

    def stop(self) -> None:
        """Fade out now and forget what is queued; what is pushed from here on is played."""
        self._stop_at = self._ring.written

    def finish(self) -> None:
        """No more frames come: running empty is no underrun any more."""
        self._finishing = True

    @property
    def buffered(self) -> float:
        """Seconds waiting to be played."""
        return min(self._ring.level, self._ring.capacity) / self.rate

    @property
    def hold(self) -> float:
        """The buffer asked for, in seconds."""
        return self._hold / self.rate

    # The callback ---------------------------------------------------------------------------------------------------

    def pull(self, out: np.ndarray, when: float = 0.0) -> None:
        """Fill `out [n]` with the next samples. `when`: the moment its first sample is heard, in seconds."""
        surplus = self._too_much(len(out))
        if surplus > 0:
            self._jump(out, surplus, when)
        else:
            done = 0
            while done < len(out):
                done += self._fill(out[done:], when + done / self.rate)
        self._follow(out)
        self.pulled += len(out)
        self.reference.write(out)

    def _fill(self, out: np.ndarray, when: float) -> int:
        """Fill the beginning of `out` as the state says; returns how much of it. 0 after a mere change of state."""
        if self._state is _State.WAITING:
            return self._wait(out)
        if self._state is _State.ENDING:
            return self._end(out, when)
        level, stopping = self._ring.level, self._stop_at is not None
        if stopping or level < len(out) + self._fade:
            self._left = min(level, self._fade) if stopping else level
            self._state = _State.ENDING
            return 0
        self._take(out, when)
        return len(out)

    def _wait(self, out: np.ndarray) -> int:
        self._forget_stopped()
        if self._silence is None and self._ring.level:
            self._silence = self._resume
        n = len(out) if self._silence is None else min(len(out), self._silence)
        out[:n] = 0
        if self._silence is not None:
            self._silence -= n
            if not self._silence:
                self._play()
        return n

    def _play(self) -> None:
        self._state, self._silence, self._risen = _State.PLAYING, None, 0
        self._start_window()

    def _end(self, out: np.ndarray, when: float) -> int:
        n = min(len(out), self._left)
        if n:
            self._take(out[:n], when)
            falling = self._left - np.arange(n)
            out[:n] *= np.minimum(falling, self._fade) / np.float32(self._fade)
            self._left -= n
        if not self._left:
            if self._stop_at is None and not self._finishing:
                self._missed()
            else:
                self._resume = self._hold
            self._forget_stopped()
            self._state, self._silence = _State.WAITING, None
        return n

    def _missed(self) -> None:
        step, most = round(HOLD_STEP * self.rate), round(MAX_HOLD * self.rate)
        again = self._calm < TROUBLE_SECONDS * self.rate
        self._resume = min(self._resume + 2 * step, most) if again else self.block + self._fade
        if not again:
            learnt = min(self._hold + round(LESSON * self.rate), self._smallest_hold + round(MOST_LEARNT * self.rate))
            self._floor = max(self._floor, learnt)
        self._hold = min(self._hold + step, most)
        self.underruns += 1
        self._calm = self._calm_minutes = 0

    def _forget_stopped(self) -> None:
        if self._stop_at is not None:
            self._ring.skip(max(0, self._stop_at - self._ring.read))
            self._stop_at = None

    def _take(self, out: np.ndarray, when: float) -> None:
        start = self._ring.read
        self._ring.take(out)
        while self._marks and self._marks[0][0] < start + len(out):
            position, captured = self._marks.popleft()
            if position >= start:
                self.latencies.write(np.array([when + (position - start) / self.rate - captured], np.float32))
        n = min(len(out), self._fade - self._risen)
        if n:
            out[:n] *= self._ramp[self._risen : self._risen + n]
            self._risen += n

    # Keeping the buffer as large as it must be ------------------------------------------------------------------------

    def _start_window(self) -> None:
        self._least, self._window = self._ring.capacity, 0

    def _follow(self, out: np.ndarray) -> None:
        """Watch what was left after each block; when it is quiet, cut or lengthen."""
        if self._state is not _State.PLAYING:
            return
        self._least = min(self._least, self._ring.level - self._fade)
        self._window += len(out)
        self._calm += len(out)
        wanted = self._hold - self.block - self._fade
        if self._window >= WINDOW_SECONDS * self.rate:
            surplus = self._least - wanted
            needless = surplus > TOLERANCE * self.rate or self._least < wanted // 4
            # What no quiet moment of a whole window could cut, and is too much, is given up at the next block.
            self._overdue = self._surplus > 0 and surplus > TOO_MUCH * self.rate
            self._surplus = surplus if needless else 0
            self._start_window()
        if self._calm >= CALM_SECONDS * self.rate:
            self._give_back()
        if self._surplus and _quiet(out):
            self._adjust(len(out))

    def _give_back(self) -> None:
        """After a calm minute."""
        self._calm, self._calm_minutes = round(TROUBLE_SECONDS * self.rate), self._calm_minutes + 1
        least = round(LEAST_GIVEN_BACK * self.rate)
        if self._calm_minutes % CALM_MINUTES_TO_FORGET == 0:
            self._floor = max(self._smallest_hold, self._floor - least)
        back = max(round(HOLD_GIVEN_BACK * (self._hold - self._floor)), least)
        self._hold = max(self._floor, self._hold - back)

    def _adjust(self, block: int) -> None:
        if self._surplus < 0:
            # A silence in a silence: begin again after it.
            self._state, self._silence, self._surplus = _State.WAITING, -self._surplus, 0
            return
        n = min(block, self._surplus, self._ring.level - block - self._fade)
        if n > 0 and _quiet(self._ring.peek(self._spare[:n])):
            self._ring.skip(n)
            self._surplus -= n

    def _too_much(self, block: int) -> int:
        """Samples to give up at once."""
        level = self._ring.level
        if self._stop_at is not None:
            return 0
        if level > MAX_SECONDS * self.rate + block:
            return level - self._hold - block
        if self._overdue and self._state is _State.PLAYING:
            return min(self._surplus, level - block - self._fade)
        return 0

    def _jump(self, out: np.ndarray, surplus: int, when: float) -> None:
        """Give up the oldest sound, blending over a fade, or over the block where that is shorter."""
        n = min(len(out), self._fade)
        old = self._ring.peek(self._spare[:n])
        old *= self._loudness()
        self._overdue, self._surplus = False, 0
        self.dropped += surplus
        self._ring.skip(surplus)
        self._state, self._silence, self._risen = _State.PLAYING, None, self._fade
        self._take(out, when)
        rise = np.arange(n, dtype=np.float32) / n
        out[:n] = old * (1 - rise) + out[:n] * rise

    def _loudness(self) -> np.float32:
        """How far what is played now has faded in, and not out again."""
        if self._state is _State.WAITING:
            return np.float32(0)
        whole = self._left if self._state is _State.ENDING else self._risen
        return np.float32(min(whole, self._fade) / self._fade)


def _quiet(x: np.ndarray) -> bool:
    return bool(np.abs(x).max(initial=0) < QUIET)
