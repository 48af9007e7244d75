"""Sound into files, pipes and standard output."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from ..defaults import RAW_FORMATS
from ..errors import AudioError, OutputError
from ..output import OutputFile, ScratchFolder, is_standard_output
from .wav import stream_header, to_int16

_FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}


class AudioWriter:
    """Writes float audio piece by piece; `commit` makes it whole and gives a file its name, anything else leaves nothing.

    The format follows the name's ending (wav, flac, ogg, mp3; wav without one). Samples are clipped to -1..1. What is no regular
    file hears wav sound as it is made. `raw` (`s16le`, `f32le`): no header at all. Raises `OutputError`, and `AudioError` for a
    name of no known format.
    """

    def __init__(self, path: str | Path, channels: int = 1, sample_rate: int = 24000, raw: str | None = None):
        self.path = Path(path)
        suffix = "" if is_standard_output(path) else self.path.suffix.lower()
        kind = _FORMATS.get(suffix, "WAV" if not suffix or raw else None)
        if kind is None:
            raise AudioError(f"{path} should end in {', '.join(_FORMATS)}, which is how the format is chosen.")
        self._output = OutputFile(path)
        self._sound: _Sound
        try:
            if raw is not None:
                self._sound = _Headerless(self._output, raw)
            elif not self._output.straight:
                self._sound = _Encoded(self._output, channels, sample_rate, kind)
            elif kind == "WAV":
                self._sound = _Streamed(self._output, channels, sample_rate)
            else:
                self._sound = _Spooled(self._output, channels, sample_rate, kind)
        except BaseException:
            self._output.discard()
            raise

    def write(self, pcm: np.ndarray) -> None:
        """`pcm [n]` or `[n, channels]`."""
        self._sound.write(np.clip(pcm, -1, 1))

    def commit(self) -> None:
        self._sound.finish()
        self._output.commit()

    def discard(self) -> None:
        """Remove what was written, unless it was committed."""
        self._sound.drop()
        self._output.discard()

    def __enter__(self) -> AudioWriter:
        return self

    def __exit__(self, *_) -> None:
        self.discard()


class _Sound(Protocol):
    def write(self, pcm: np.ndarray) -> None: ...

    def finish(self) -> None: ...

    def drop(self) -> None:
        """Let go of what is held, after `finish` too."""


class _Encoded:
    """libsndfile writes to the descriptor itself: no call of it comes back to Python, where a signal could be lost."""

    def __init__(self, output: OutputFile, channels: int, sample_rate: int, kind: str):
        self._output = output
        with self._explained():
            self._file: soundfile.SoundFile | None = soundfile.SoundFile(
                output.fd, "w", sample_rate, channels, format=kind, closefd=False
            )

    @contextlib.contextmanager
    def _explained(self):
        try:
            yield
        except (soundfile.LibsndfileError, RuntimeError, AssertionError) as e:
            raise self._output.explain(getattr(e, "error_string", str(e)).rstrip(".")) from None

    def write(self, pcm: np.ndarray) -> None:
        assert self._file is not None
        with self._explained():
            self._file.write(pcm)

    def finish(self) -> None:
        assert self._file is not None
        with self._explained():
            self._file.close()
        self._file = None

    def drop(self) -> None:
        if self._file is not None:
            # A full disk fails again when closing.
            with contextlib.suppress(soundfile.LibsndfileError, OutputError):
                self._file.close()
            self._file = None


class _Spooled:
    """Formats that are not whole before their end, for a reader that cannot go back: made beside, then passed on."""

    def __init__(self, output: OutputFile, channels: int, sample_rate: int, kind: str):
        self._output, self._folder = output, ScratchFolder()
        try:
            self._path = self._folder.path / "sound"
            self._scratch = OutputFile(self._path)
            self._inner = _Encoded(self._scratch, channels, sample_rate, kind)
        except BaseException:
            self._folder.remove()
            raise

    def write(self, pcm: np.ndarray) -> None:
        self._inner.write(pcm)

    def finish(self) -> None:
        self._inner.finish()
        self._scratch.commit()
        with open(self._path, "rb") as file:
            while piece := file.read(1 << 16):
                self._output.write(piece)

    def drop(self) -> None:
        self._inner.drop()
        self._scratch.discard()
        self._folder.remove()


class _Streamed:
    """Wav sound as it is made. Its length stands in the header only where the header can be written again: `> reply.wav`."""

    def __init__(self, output: OutputFile, channels: int, sample_rate: int):
        self._output, self._layout, self._samples = output, (channels, sample_rate), 0
        self._start = _position(output)
        self._begun = False

    def write(self, pcm: np.ndarray) -> None:
        self._begin()
        self._output.write(to_int16(pcm).tobytes())
        self._samples += len(pcm)

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._output.write(stream_header(*self._layout))

    def finish(self) -> None:
        self._begin()
        if self._start is not None and self._output.fd is not None:
            try:
                os.pwrite(self._output.fd, stream_header(*self._layout, self._samples), self._start)
            except OSError as e:
                raise self._output.failed(e) from None

    def drop(self) -> None:
        pass


def _position(output: OutputFile) -> int | None:
    """Where in a regular file the next byte goes; None where what was written cannot be written again."""
    if output.fd is None or not stat.S_ISREG(os.fstat(output.fd).st_mode):
        return None
    # Appended bytes go to the end, wherever one writes: `>> reply.wav`.
    if fcntl.fcntl(output.fd, fcntl.F_GETFL) & os.O_APPEND:
        return None
    return os.lseek(output.fd, 0, os.SEEK_CUR)


class _Headerless:
    """Samples and nothing else."""

    def __init__(self, output: OutputFile, form: str):
        self._output, self._type = output, RAW_FORMATS[form]

    def write(self, pcm: np.ndarray) -> None:
        samples = to_int16(pcm) if self._type == "<i2" else pcm.astype(self._type)
        self._output.write(samples.tobytes())

    def finish(self) -> None:
        pass

    def drop(self) -> None:
        pass
