"""Taking the loudspeaker's sound out of the microphone's: WebRTC's canceller, or a half-duplex gate.

    clean = canceller.process(near, far)        # 80 ms each: heard by the microphone, played by the loudspeaker

The far signal may lead the near one by up to half a second; the canceller finds the delay itself and follows it.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Protocol

import numpy as np

from ..defaults import ECHO_MODES
from ..errors import InputError
from .playback import Playback
from .resample import Resampler

# The gate: what counts as playing, and how long an echo of it may last (devices' delay and the room).
GATE_LEVEL, GATE_SECONDS = 0.003, 0.4
FADE_SECONDS = 0.005


class Canceller(Protocol):
    def process(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        """`near [n]` without the echo of `far [n]`, both float32 of 10 ms or a multiple."""


def available() -> bool:
    """Whether the library for `aec` is installed."""
    return importlib.util.find_spec("livekit") is not None


def make(
    mode: str | None, sample_rate: int = 24000, *, noise_suppression: bool = False, auto_gain: bool = False
) -> Canceller | None:
    """The canceller of a mode, None for `off`. Mode None: `aec` where its library is installed."""
    if mode is None:
        mode = "aec" if available() else "off"
    if mode not in ECHO_MODES:
        raise InputError(f"{mode!r} is no way to handle echo; expected {', '.join(ECHO_MODES)}.")
    if (mode == "aec" or noise_suppression or auto_gain) and not available():
        what = "echo cancellation" if mode == "aec" else "noise suppression and automatic gain"
        raise InputError(
            f"{what} needs the package livekit, which is not installed. In the folder of moshi_mlx: pip install '.[echo]'; "
            "or use headphones and --echo-cancel off."
        )
    gate = HalfDuplexGate(sample_rate) if mode == "mute" else None
    if mode == "aec" or noise_suppression or auto_gain:
        return WebRtcCanceller(sample_rate, mode == "aec", noise_suppression, auto_gain, gate)
    return gate


class WebRtcCanceller:
    """WebRTC's audio processing: echo canceller, noise suppressor, gain control, each if asked for. Delays by 9 ms.

    `gate`, if given, follows (half duplex with noise suppression or gain). Belongs to one thread.
    """

    def __init__(
        self,
        sample_rate: int,
        echo: bool = True,
        noise_suppression: bool = False,
        auto_gain: bool = False,
        gate: HalfDuplexGate | None = None,
    ):
        from livekit import rtc

        self._frame, self.sample_rate, self._gate = rtc.AudioFrame, sample_rate, gate
        self._size = sample_rate // 100
        self._module = rtc.AudioProcessingModule(
            echo_cancellation=echo, noise_suppression=noise_suppression, auto_gain_control=auto_gain
        )

    def process(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        if len(near) % self._size or len(near) != len(far):
            raise InputError(
                f"echo is cancelled in equal multiples of {self._size} samples, found {len(near)}, {len(far)}."
            )
        out = np.empty(len(near), np.float32)
        near16, far16 = _to_int16(near), _to_int16(far)
        for at in range(0, len(near), self._size):
            part = slice(at, at + self._size)
            played, heard = self._wrap(far16[part]), self._wrap(near16[part])
            self._module.process_reverse_stream(played)
            self._module.process_stream(heard)
            out[part] = np.frombuffer(heard.data, np.int16)
        out *= np.float32(1 / 32768)
        return out if self._gate is None else self._gate.process(out, far)

    def _wrap(self, x: np.ndarray):
        return self._frame(x.tobytes(), self.sample_rate, 1, self._size)


def _to_int16(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x * 32768), -32768, 32767).astype(np.int16)


class HalfDuplexGate:
    """Hears nothing while the loudspeaker plays and shortly after: no library, no echo, no interrupting."""

    def __init__(self, sample_rate: int):
        self._hold = round(GATE_SECONDS * sample_rate)
        self._fade = round(FADE_SECONDS * sample_rate)
        self._closed_for = 0
        self._gain = 1.0

    def process(self, near: np.ndarray, far: np.ndarray) -> np.ndarray:
        if np.abs(far).max(initial=0) > GATE_LEVEL:
            self._closed_for = self._hold
        gain = 0.0 if self._closed_for > 0 else 1.0
        self._closed_for -= len(near)
        n = min(self._fade, len(near))
        ramp = np.concatenate(
            [np.linspace(self._gain, gain, n, dtype=np.float32), np.full(len(near) - n, gain, np.float32)]
        )
        self._gain = gain
        return near * ramp


class FarEnd:
    """What the loudspeaker played while a frame was captured, at the microphone's rate.

    The newest sound played is laid beside the newest captured, less a margin for the grain of blocks, so the far end leads
    the echo by the devices' delays. It is laid anew when the two clocks have drifted apart for several frames.
    """

    MARGIN, TOLERANCE, PATIENCE = 0.01, 0.05, 5

    def __init__(self, playback: Playback, sample_rate: int = 24000):
        self.realigned = 0
        self._ring, self._rate, self._step = playback.reference, playback.rate, playback.rate / sample_rate
        self._resampler = Resampler(playback.rate, sample_rate)
        self._rest = np.zeros(0, np.float32)
        self._astray: int | None = None  # frames in a row that were out of place; None before the first

    def take(self, n: int, backlog: float, skipped: int = 0) -> np.ndarray:
        """The `n` samples that go with a frame behind which `backlog` seconds have been captured already.

        `skipped`: samples the microphone's side has left out since the last frame.
        """
        if skipped:
            self._ring.skip(round(skipped * self._step))
        self._keep_aligned(n, backlog + self.MARGIN)
        while len(self._rest) < n:
            missing = math.ceil((n - len(self._rest)) * self._step)
            chunk = np.zeros(max(0, min(missing, self._ring.level)), np.float32)
            if not len(chunk):
                # The loudspeaker stands still.
                self._rest = np.concatenate([self._rest, np.zeros(n - len(self._rest), np.float32)])
                break
            self._ring.take(chunk)
            self._rest = np.concatenate([self._rest, self._resampler(chunk)])
        out, self._rest = self._rest[:n], self._rest[n:]
        return out

    def realign(self) -> None:
        """Lay the two sides anew at the next frame, after a pause."""
        self._astray = None

    def _keep_aligned(self, n: int, wanted: float) -> None:
        left = self._ring.level + (len(self._rest) - n) * self._step
        if self._astray is not None:
            self._astray = self._astray + 1 if abs(left / self._rate - wanted) > self.TOLERANCE else 0
            if self._astray < self.PATIENCE:
                return
            self.realigned += 1
        self._astray = 0
        self._rest = self._rest[:0]
        self._ring.skip(self._ring.level - round(wanted * self._rate + n * self._step))
