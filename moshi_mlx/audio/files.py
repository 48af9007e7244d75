"""Sound in files and pipes as streams of frames: any format, rate and channel count, in constant memory."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soxr

from ..errors import AudioError, CutShortWarning
from .pcm import Raw
from .samples import LOUDEST
from .sources import open_sound
from .writer import AudioWriter

__all__ = ["AudioReader", "AudioWriter", "Raw", "read_audio"]

_BLOCK_SECONDS = 1.0
_MIN_RATE, _MAX_RATE = 1000, 768000


class AudioReader:
    """Mono float32 audio of a file (`-`: standard input) at `sample_rate`, channels averaged.

    `raw`: what the samples are, of sound without a header. A pipe is read while it comes. `duration` is in seconds of input, None
    where nobody knows. A recording whose end is missing is read as far as it goes and then told: in `shortened`, a sentence, which
    `tell` is given too; without it, it is a warning. Raises `AudioError` for what cannot be used.
    """

    def __init__(
        self,
        path: str | Path,
        sample_rate: int = 24000,
        raw: Raw | None = None,
        tell: Callable[[str], None] | None = None,
    ):
        self.name = "standard input" if str(path) == "-" else str(path)
        self.sample_rate, self.samples = sample_rate, 0
        self.shortened: str | None = None
        self._tell, self._begun = tell, False
        with self._readable():
            self._sound = open_sound(path, self.name, raw)
        rate = self._sound.samplerate
        try:
            if not _MIN_RATE <= rate <= _MAX_RATE:
                raise AudioError(
                    f"{self.name} says it has {rate} samples a second; expected {_MIN_RATE} to {_MAX_RATE}."
                )
            if self._sound.frames == 0:
                raise AudioError(f"{self.name} holds no audio.")
        except AudioError:
            self._sound.close()
            raise
        self._resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    @property
    def duration(self) -> float | None:
        frames = self._sound.frames
        return None if frames is None else frames / self._sound.samplerate

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive pieces of audio, float32 `[n]`. Once: it is read while it is used."""
        if self._begun:
            raise AudioError(f"{self.name} has been read already; open it again.")
        self._begun = True
        rate = self._sound.samplerate
        size, heard = max(1, int(rate * _BLOCK_SECONDS)), 0
        while len(block := self._read(size)):
            heard += len(block)
            mono = block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
            if not np.isfinite(mono).all():
                raise AudioError(f"{self.name} holds samples that are not numbers (NaN or infinite).")
            if (peak := float(np.abs(mono).max())) > LOUDEST:
                raise AudioError(
                    f"{self.name} holds samples up to {peak:g}; expected -1..1. If they are whole numbers that were written as floats, "
                    "divide them by their full scale (16 bits: 32768)."
                )
            if self._resampler is not None:
                mono = self._resampler.resample_chunk(mono)
            if len(mono):
                yield mono
        if self._resampler is not None and heard:
            rest = self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)
            if len(rest):
                yield rest
        self._look_at_the_end(heard / rate)

    def _read(self, size: int) -> np.ndarray:
        with self._readable():
            return self._sound.read(size)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """What the system refuses, a disk or a share that is gone perhaps, is told like other faults of a recording."""
        try:
            yield
        except OSError as e:
            raise AudioError(f"{self.name} cannot be read: {e.strerror or e}.") from None

    def _look_at_the_end(self, seconds: float) -> None:
        with self._readable():
            cut = self._sound.cut(seconds)
        if cut is None:
            return
        there = (
            f"{seconds:.1f} of {cut.whole:.1f} s are there"
            if (cut.whole or 0) > seconds
            else f"it ends after {seconds:.1f} s"
        )
        self.shortened = f"{self.name} is cut short: {there}."
        if self._tell is not None:
            self._tell(self.shortened)
        else:
            warnings.warn(self.shortened, CutShortWarning, stacklevel=2)

    def frames(self, size: int) -> Iterator[np.ndarray]:
        """Frames of exactly `size` samples, the last one filled with zeros; `samples` counts what was not filling."""
        rest = np.zeros(0, np.float32)
        for block in self.blocks():
            self.samples += len(block)
            rest = np.concatenate([rest, block])
            whole = len(rest) // size * size
            yield from rest[:whole].reshape(-1, size)
            rest = rest[whole:]
        if len(rest):
            yield np.pad(rest, (0, size - len(rest)))

    def close(self) -> None:
        self._sound.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def read_audio(
    path: str | Path,
    sample_rate: int = 24000,
    raw: Raw | None = None,
    tell: Callable[[str], None] | None = None,
) -> np.ndarray:
    """A whole file, float32 mono `[n]` at `sample_rate`; arguments as of `AudioReader`."""
    with AudioReader(path, sample_rate, raw, tell) as reader:
        return np.concatenate([*reader.blocks(), np.zeros(0, np.float32)])
