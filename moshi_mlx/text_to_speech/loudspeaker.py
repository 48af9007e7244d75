"""Speech to a sound device while it is generated.

Generation may run ahead by a bounded amount, then waits for the device. When sound comes too late it fades out and in again:
nothing is cut or skipped, since every word counts more than the moment.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from ..audio import devices
from ..audio.resample import Resampler
from ..audio.ring import Ring
from ..audio.streams import LEAVE_SECONDS, guarded
from ..errors import AudioError

AHEAD_SECONDS = 2.0
# Sound that lies ready before the first is played.
HOLD_SECONDS = 0.16
FADE_SECONDS = 0.005
# A device that takes nothing for so long has gone.
STALL_SECONDS = 3.0


class Queue:
    """Between the model thread (`push`) and the device's callback (`pull`). Samples are mono float32 at `rate`."""

    def __init__(self, rate: int):
        self.rate = rate
        self.underruns = 0
        self._ring = Ring(round(2 * AHEAD_SECONDS * rate))
        self._ramp = np.linspace(0, 1, max(1, round(FADE_SECONDS * rate)), dtype=np.float32)
        self._hold = round(HOLD_SECONDS * rate)
        self._playing = self._finished = False

    @property
    def buffered(self) -> float:
        """Seconds waiting to be played."""
        return self._ring.level / self.rate

    def push(self, pcm: np.ndarray) -> None:
        self._ring.write(pcm)

    def finish(self) -> None:
        """Nothing more will be pushed."""
        self._finished = True

    def pull(self, out: np.ndarray) -> None:
        """Fill `out [n]`."""
        begins = not self._playing
        level = self._ring.level
        if begins and (not level or (level < self._hold and not self._finished)):
            out[:] = 0
            return
        count = min(level, len(out))
        self._ring.take(out[:count])
        out[count:] = 0
        fade = min(count, len(self._ramp))
        if begins:
            out[:fade] *= self._ramp[:fade]
        # Enough must be left to fade out with, should nothing more come.
        self._playing = level - count >= len(self._ramp)
        if not self._playing:
            out[count - fade : count] *= self._ramp[len(self._ramp) - fade :][::-1]
            self.underruns += not self._finished


class Loudspeaker:
    """A sound device for one speech. Made and found at once, opened later."""

    def __init__(self, wanted: str | None = None):
        self._sd = devices.portaudio()
        self._settings = devices.settle(self._sd, devices.choose(devices.devices(self._sd), "output", wanted), "output")
        self.queue = Queue(self._settings.rate)
        self._resample = Resampler(devices.SAMPLE_RATE, self._settings.rate)
        self._stream: Any = None
        self._leaving = self._stalled = False
        self._left = threading.Event()

    @property
    def name(self) -> str:
        return str(self._settings)

    def __enter__(self) -> Loudspeaker:
        s, queue = self._settings, self.queue
        mono = np.zeros(s.rate, np.float32)

        def callback(block: np.ndarray, frames: int, _times: Any, _status: Any) -> None:
            if self._leaving:
                block[:] = 0
                raise self._sd.CallbackAbort
            queue.pull(mono[:frames])
            block[:] = mono[:frames, None]

        try:
            self._stream = self._sd.OutputStream(
                device=s.device.index,
                channels=s.channels,
                samplerate=s.rate,
                blocksize=s.block,
                latency=s.latency,
                dtype="float32",
                callback=callback,
                finished_callback=self._left.set,
            )
            self._stream.start()
        except (self._sd.PortAudioError, ValueError) as e:
            raise AudioError(
                f"the loudspeaker {s.device.name} cannot be opened ({e}). Close programs that use it."
            ) from None
        return self

    def write(self, pcm: np.ndarray) -> None:
        """Queue `pcm [n]` at 24 kHz, after waiting for room."""
        self._wait(AHEAD_SECONDS)
        self.queue.push(self._resample(pcm))

    def finish(self) -> None:
        """Wait until everything has been heard."""
        self.queue.finish()
        self._wait(0.0)
        time.sleep(2 * self._settings.latency)

    def _wait(self, seconds: float) -> None:
        """Until no more than `seconds` are buffered."""
        since, level = time.monotonic(), self.queue.buffered
        while self.queue.buffered > seconds:
            time.sleep(min(0.05, self.queue.buffered - seconds + 0.001))
            if self.queue.buffered != level:
                since, level = time.monotonic(), self.queue.buffered
            elif time.monotonic() - since > STALL_SECONDS:
                self._stalled = True
                raise AudioError(
                    f"{self._settings.device.name} takes no more sound. Connect it again, or write to a file."
                )

    def __exit__(self, *_) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return

        def end() -> None:
            # As in `audio.streams`: a stream ends from within its callback, unless it stands still.
            if stream.active and not self._stalled:
                self._left.wait(LEAVE_SECONDS)
            stream.abort(ignore_errors=True)
            stream.close(ignore_errors=True)

        self._leaving = True
        guarded(end, self._sd)
