"""Audio files as streams of frames: any format libsndfile reads, any rate and channel count, in constant memory."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from ..errors import AudioError

_BLOCK_SECONDS = 1.0
_MIN_RATE, _MAX_RATE = 1000, 768000
_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}


class AudioReader:
    """Mono float32 audio of a file (`-`: standard input) at `sample_rate`, channels averaged.

    `duration` is in seconds of input, None where the file does not say. Raises `AudioError` for what cannot be used.
    """

    def __init__(self, path: str | Path, sample_rate: int = 24000):
        self.name = "standard input" if str(path) == "-" else str(path)
        self.sample_rate, self.samples = sample_rate, 0
        self._file = _open(path, self.name)
        rate = self._file.samplerate
        if not _MIN_RATE <= rate <= _MAX_RATE:
            raise AudioError(f"{self.name} says it has {rate} samples a second; expected {_MIN_RATE} to {_MAX_RATE}.")
        if self._file.frames == 0:
            raise AudioError(f"{self.name} holds no audio.")
        self._resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    @property
    def duration(self) -> float | None:
        frames = self._file.frames
        return frames / self._file.samplerate if 0 < frames < 2**62 else None

    def blocks(self) -> Iterator[np.ndarray]:
        """Consecutive pieces of audio, float32 `[n]`."""
        size = max(1, int(self._file.samplerate * _BLOCK_SECONDS))
        while True:
            try:
                block = self._file.read(size, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as e:
                raise AudioError(
                    f"{self.name} is damaged or cut short and cannot be decoded ({e.error_string.rstrip('.')})."
                ) from None
            last = len(block) < size
            mono = block.mean(axis=1, dtype=np.float32) if block.shape[1] > 1 else block[:, 0]
            if not np.isfinite(mono).all():
                raise AudioError(f"{self.name} holds samples that are not numbers (NaN or infinite).")
            if self._resampler is not None:
                mono = self._resampler.resample_chunk(mono, last=last)
            if len(mono):
                yield mono
            if last:
                return

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
        self._file.close()

    def __enter__(self) -> AudioReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _open(path: str | Path, name: str) -> soundfile.SoundFile:
    source: str | io.BytesIO = str(path)
    if str(path) == "-":
        if sys.stdin is None:
            raise AudioError("standard input is closed; pipe an audio file into it.")
        # Formats are recognised by seeking, which a pipe cannot do.
        source = io.BytesIO(sys.stdin.buffer.read())
        if not source.getbuffer().nbytes:
            raise AudioError("standard input is empty; pipe an audio file into it.")
    elif not Path(path).exists():
        raise AudioError(f"the audio file {path} does not exist.")
    elif Path(path).is_dir():
        raise AudioError(f"{path} is a folder; expected an audio file.")
    elif not os.access(path, os.R_OK):
        raise AudioError(f"{path} may not be read by this user.")
    elif not Path(path).stat().st_size and Path(path).is_file():
        raise AudioError(f"{path} is empty.")
    try:
        return soundfile.SoundFile(source)
    except (soundfile.LibsndfileError, OSError, TypeError) as e:
        reason = e.error_string if isinstance(e, soundfile.LibsndfileError) else str(e)
        raise AudioError(
            f"{name} is not an audio file that can be read ({reason.rstrip('.')}). Expected wav, flac, ogg or mp3."
        ) from None


def read_audio(path: str | Path, sample_rate: int = 24000) -> np.ndarray:
    """A whole file, float32 mono `[n]` at `sample_rate`."""
    with AudioReader(path, sample_rate) as reader:
        return np.concatenate([*reader.blocks(), np.zeros(0, np.float32)])


class AudioWriter:
    """Writes float audio piece by piece under a temporary name; `commit` gives it its own, anything else leaves nothing.

    The format follows the name's ending (wav, flac, ogg, mp3; wav without one). Samples are clipped to -1..1.
    """

    def __init__(self, path: str | Path, channels: int = 1, sample_rate: int = 24000):
        self.path, self._file = Path(path), None
        self._temporary = None
        kind = _FORMATS.get(self.path.suffix.lower(), "WAV" if not self.path.suffix else None)
        if kind is None:
            raise AudioError(f"{path} should end in {', '.join(_FORMATS)}, which is how the format is chosen.")
        check_writable(self.path)
        try:
            handle, self._temporary = tempfile.mkstemp(
                prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent
            )
            os.close(handle)
            self._file = soundfile.SoundFile(self._temporary, "w", sample_rate, channels, format=kind)
        except (OSError, soundfile.LibsndfileError) as e:
            self.discard()
            raise AudioError(f"{path} cannot be written: {e}") from None

    def write(self, pcm: np.ndarray) -> None:
        """`pcm [n]` or `[n, channels]`."""
        assert self._file is not None
        try:
            self._file.write(np.clip(pcm, -1, 1))
        except (OSError, soundfile.LibsndfileError, RuntimeError) as e:
            raise AudioError(f"{self.path} cannot be written: {e}") from None

    def commit(self) -> None:
        """Finish the file and give it its name."""
        assert self._file is not None and self._temporary is not None
        try:
            self._file.close()
            os.chmod(self._temporary, 0o666 & ~_umask())
            os.replace(self._temporary, self.path)
        except (OSError, soundfile.LibsndfileError) as e:
            raise AudioError(f"{self.path} cannot be written: {e}") from None
        self._file = self._temporary = None

    def discard(self) -> None:
        """Remove what was written, unless it was committed."""
        if self._file is not None:
            # A full disk fails again when closing; the file goes away all the same.
            with contextlib.suppress(soundfile.LibsndfileError):
                self._file.close()
            self._file = None
        if self._temporary is not None:
            Path(self._temporary).unlink(missing_ok=True)
            self._temporary = None

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, *_) -> None:
        self.discard()


def check_writable(path: Path) -> None:
    """Tell at once that an output cannot be written, not after the work is done."""
    folder = path.parent
    if path.is_dir():
        raise AudioError(f"{path} is a folder; expected the name of a file to write.")
    if folder.exists() and not folder.is_dir():
        raise AudioError(f"{folder} is a file; expected the folder of {path.name}.")
    if not folder.is_dir():
        raise AudioError(f"the folder {folder} does not exist; make it first.")
    if not os.access(folder, os.W_OK):
        raise AudioError(f"the folder {folder} cannot be written to.")


def write_text(path: Path, text: str) -> None:
    """A text file, under a temporary name until it is whole."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as f:
                f.write(text)
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as e:
        raise AudioError(f"{path} cannot be written: {e}") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
