"""The microphone and the loudspeaker as the live loop sees them: opened, watched, closed, opened again.

The two are separate PortAudio streams, because duplex ones underrun on several systems. Callbacks only move samples; what
they raise would be lost, so they raise nothing but the word that ends a stream. Times are `time.perf_counter()`.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import AudioError
from .capture import MAX_LAG, Capture
from .devices import SAMPLE_RATE, Device, Kind, Settings, choose, devices, settle
from .playback import Playback
from .resample import Resampler

# A stream that moved no sample for so long has stalled; servers may take a while to start one.
STALL_SECONDS, START_SECONDS = 2.0, 6.0
LEAVE_SECONDS, CLOSE_SECONDS = 3.0, 10.0
STEADY_SECONDS = 0.25
# Digital silence for so long means that something is switched off.
SILENCE_SECONDS = 3.0


@dataclass(frozen=True)
class Wanted:
    """What the user asked for, kept for the time a device has to be found again. Times in seconds."""

    device: str | int | None = None
    channel: int | None = None
    block: float = 0.01
    latency: float = 0.04


class _Stream:
    """One open PortAudio stream and its pulse."""

    def __init__(self, sd: Any, kind: Kind, wanted: Wanted):
        self._sd, self.kind, self.wanted = sd, kind, wanted
        self.settings: Settings | None = None
        self.errors = 0  # blocks the device said it lost or lacked
        self._stream: Any = None
        self._beat = 0.0
        self._leaving, self._left = False, threading.Event()

    def find(self) -> Settings:
        """Choose the device and settle how to open it, without opening it."""
        w, device = self.wanted, self._choose(devices(self._sd))
        self.settings = settle(self._sd, device, self.kind, channel=w.channel, block=w.block, latency=w.latency)
        return self.settings

    def _choose(self, found: list[Device]) -> Device:
        """Numbers change when devices come and go: one that was found by its number is found again by its name."""
        if self.settings is None or not str(self.wanted.device).strip().isdecimal():
            return choose(found, self.kind, self.wanted.device)
        before = self.settings.device
        same = [d for d in found if (d.name, d.host) == (before.name, before.host) and d.channels(self.kind)]
        if not same:
            raise AudioError(f"{before.name} is gone.")
        return next((d for d in same if d.index == before.index), same[0])

    def _start(self, settings: Settings, callback: Callable) -> None:
        make = self._sd.InputStream if self.kind == "input" else self._sd.OutputStream
        self._beat = time.perf_counter() + START_SECONDS - STALL_SECONDS
        self._leaving, self._left = False, threading.Event()
        try:
            self._stream = make(
                device=settings.device.index,
                channels=settings.channels,
                samplerate=settings.rate,
                blocksize=settings.block,
                latency=settings.latency,
                dtype="float32",
                callback=callback,
                finished_callback=self._left.set,
            )
            self._stream.start()
        except (self._sd.PortAudioError, ValueError) as e:
            self.close()
            noun = "microphone" if self.kind == "input" else "loudspeaker"
            raise AudioError(
                f"the {noun} {settings.device.name} cannot be opened ({e}). Close programs that use it, or choose another "
                f"with --{self.kind}-device (--list-devices shows them)."
            ) from None

    @property
    def delay(self) -> float:
        """Seconds between the air and the callback, as the device states them.

        The moments PortAudio gives to callbacks would be finer, but some systems get them wrong by half a second.
        """
        return 0.0 if self._stream is None else min(max(float(self._stream.latency), 0.0), 1.0)

    def problem(self) -> str | None:
        """What is wrong with the open stream, None when it runs."""
        if self._stream is None or self.settings is None:
            return None
        name = self.settings.device.name
        if not self._stream.active:
            return f"{name} was disconnected"
        if self._stalled():
            return f"{name} has stopped" if self.kind == "output" else f"{name} delivers no sound"
        return None

    def _stalled(self) -> bool:
        return time.perf_counter() - self._beat > STALL_SECONDS

    def suspend(self) -> None:
        """Let go of the device, to open it again later."""
        self.close()

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return

        def end() -> None:
            # A stream whose callback ends it lets go of the device by itself; to abort it in the middle of a call into a
            # sound server can leave the server's client locked for ever. One that stands still has to be aborted.
            if stream.active and not stalled:
                left.wait(LEAVE_SECONDS)
            stream.abort(ignore_errors=True)
            stream.close(ignore_errors=True)

        stalled, left = self._stalled(), self._left
        self._leaving = True
        guarded(end, self._sd)


def guarded(action: Callable[[], Any], sd: Any = None) -> None:
    """Call into PortAudio where a broken device may never answer: raise instead of hanging with it."""
    thread = threading.Thread(target=action, name="portaudio", daemon=True)
    thread.start()
    thread.join(CLOSE_SECONDS)
    if thread.is_alive():
        # Nor may the program hang when the module tidies up behind it.
        if sd is not None:
            atexit.unregister(sd._exit_handler)
        raise AudioError("the sound system no longer responds. Reconnect the device and start again.")


def restart_portaudio(sd: Any) -> None:
    """Let PortAudio look again which devices there are. Every stream must be closed."""

    def again() -> None:
        # The module offers no public way.
        sd._terminate()
        sd._initialize()

    guarded(again, sd)


class Microphone(_Stream):
    """Frames of the user's sound, from a device."""

    paced = True
    ended = False

    def __init__(self, sd: Any, wanted: Wanted | None = None, frame_size: int = 1920, max_lag: float = MAX_LAG):
        super().__init__(sd, "input", wanted or Wanted())
        self._frame_size, self._max_lag = frame_size, max_lag
        self._before = (0, 0)
        self.capture = Capture(SAMPLE_RATE, frame_size, max_lag=max_lag)
        self._silent = 0.0

    def open(self) -> None:
        settings = self.find()
        self._before = (self.dropped, self.invalid)
        self._silent = 0.0
        self.capture = Capture(settings.rate, self._frame_size, SAMPLE_RATE, self._max_lag, self.wanted.channel)
        self._start(settings, self._callback(self.capture))

    def _callback(self, capture: Capture) -> Callable:
        def callback(block: np.ndarray, n: int, times: Any, status: Any) -> None:
            if self._leaving:
                raise self._sd.CallbackAbort
            now = time.perf_counter()
            capture.feed(block, now)
            self._beat = max(self._beat, now)
            if status:
                self.errors += 1

        return callback

    def started(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the device to deliver steadily, past what it has gathered at first."""
        return self.capture.steady(STEADY_SECONDS, timeout)

    def read(self, timeout: float) -> np.ndarray | None:
        frame = self.capture.read(timeout)
        if frame is not None:
            self._silent = 0.0 if frame.any() else self._silent + self._frame_size / SAMPLE_RATE
        return frame

    @property
    def silent(self) -> bool:
        """Whether the device has delivered nothing but zeros for seconds, as a switched-off or forbidden one does."""
        return self._silent >= SILENCE_SECONDS

    @property
    def completed(self) -> float:
        return self.capture.completed

    @property
    def lag(self) -> float:
        return self.capture.waiting

    @property
    def dropped(self) -> int:
        return self._before[0] + self.capture.dropped

    @property
    def invalid(self) -> int:
        return self._before[1] + self.capture.invalid

    def wake(self) -> None:
        self.capture.wake()

    def pause(self, paused: bool) -> None:
        """What was said during a pause is not kept."""
        if not paused:
            self.capture.discard()


class Speaker(_Stream):
    """Moshi's sound, to a device."""

    paced = True

    def __init__(self, sd: Any, wanted: Wanted | None = None, jitter: float = 0.02):
        super().__init__(sd, "output", wanted or Wanted())
        self.jitter = jitter
        self._before = (0, 0.0)
        self.playback = Playback(SAMPLE_RATE, SAMPLE_RATE // 100)
        self._resampler = Resampler(SAMPLE_RATE, SAMPLE_RATE)

    def open(self) -> None:
        settings = self.find()
        self._before = (self.underruns, self.cut)
        self._resampler = Resampler(SAMPLE_RATE, settings.rate)
        self.playback = Playback(settings.rate, settings.block, self.jitter)
        self._start(settings, self._callback(self.playback, settings.rate))

    def _callback(self, playback: Playback, rate: int) -> Callable:
        mono = np.zeros(rate, np.float32)

        def callback(block: np.ndarray, n: int, times: Any, status: Any) -> None:
            if self._leaving:
                block[:] = 0
                raise self._sd.CallbackAbort
            now = time.perf_counter()
            playback.pull(mono[:n], now)
            # Both of a pair, the first two of many.
            block[:, :2] = mono[:n, None]
            block[:, 2:] = 0
            self._beat = max(self._beat, now)
            if status:
                self.errors += 1

        return callback

    def started(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the device to play steadily, past the buffers it fills at first."""
        return self.playback.reference.wait(round(STEADY_SECONDS * self.playback.rate), timeout)

    def write(self, pcm: np.ndarray, captured: float | None = None) -> None:
        """Queue `pcm [n]` at 24 kHz."""
        self.playback.push(self._resampler(np.clip(pcm, -1, 1)), captured)

    def stop(self) -> None:
        self.playback.stop()

    def finish(self) -> None:
        """Wait until what is queued has been heard."""
        self.playback.finish()
        latency = 2 * self.delay
        deadline = time.perf_counter() + self.playback.buffered + latency + 0.5
        done = threading.Event()
        while self.playback.buffered and self.problem() is None and time.perf_counter() < deadline:
            done.wait(self.playback.buffered + 0.01)
        done.wait(latency)

    @property
    def buffered(self) -> float:
        return self.playback.buffered

    @property
    def hold(self) -> float:
        return self.playback.hold

    @property
    def underruns(self) -> int:
        return self._before[0] + self.playback.underruns

    @property
    def cut(self) -> float:
        """Seconds of Moshi's sound given up to keep the buffer bounded."""
        return self._before[1] + self.playback.dropped / self.playback.rate
