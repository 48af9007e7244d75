"""Formats that libsndfile does not know (what phones and browsers record), read by a program that does.

`ffmpeg` answers while it reads, from a pipe too. `afconvert`, which every Mac has, converts a file as a whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import AudioError, clean
from ..output import ScratchFolder
from .pcm import Cut, Decoder, wav_decoder

# Apple has no reader for these.
_NOT_AFCONVERT = ("webm", "wma", "wavpack", "ape", "ogg")
_ENDINGS = {"mp4": ".m4a", "aac": ".aac", "amr": ".amr", "caf": ".caf"}
_FFMPEG = (
    "-hide_banner", "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe",
)  # fmt: skip
_TO_WAV = ("-map", "0:a:0", "-map_metadata", "-1", "-bitexact", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1")
_DEMUXERS = {"mp4": "mov", "aac": "aac", "amr": "amr", "webm": "matroska", "ogg": "ogg", "mp3": "mp3", "flac": "flac"}
# What ffmpeg says of a file that ends too early.
_NO_SOUND = "matches no streams"
_CUT_WORDS = ("ended prematurely", "partial file", "truncated")


def have_ffmpeg() -> bool:
    return shutil.which("ffmpeg") is not None


def convert(path: Path, kind: str, name: str) -> Decoder:
    """A file of a known kind, by whichever program is there. Raises `AudioError`."""
    failed: AudioError | None = None
    if have_ffmpeg():
        try:
            return FfmpegDecoder(kind, name, path=path)
        except AudioError as e:
            failed = e
    if kind not in _NOT_AFCONVERT and shutil.which("afconvert") is not None:
        return AfconvertDecoder(path, kind, name)
    if failed is not None:
        raise failed
    apple = "" if kind in _NOT_AFCONVERT else "afconvert, which every Mac has, or "
    raise AudioError(f"{name} is {kind} sound, which needs {apple}ffmpeg, and none is installed. Install ffmpeg.")


def _told(lines: Iterable[str]) -> str:
    """The last thing a program said, which may quote what stands in a file."""
    said = [line.strip() for line in lines if line.strip()]
    return f" ({clean(said[-1], 200).rstrip('.')})" if said else ""


class FfmpegDecoder:
    """Sound from a file, or from a stream (`read_bytes(n)`: up to n bytes, none at the end) that is passed on by a thread."""

    def __init__(
        self, kind: str, name: str, *, path: Path | None = None, read_bytes: Callable[[int], bytes] | None = None
    ):
        self._name = name
        source = "pipe:0" if path is None else f"file:{path.absolute()}"
        demuxer = ("-f", _DEMUXERS[kind]) if kind in _DEMUXERS else ()
        self._process = subprocess.Popen(
            ["ffmpeg", *_FFMPEG, *demuxer, "-i", source, *_TO_WAV],
            stdin=subprocess.DEVNULL if read_bytes is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Ctrl-C is for us to obey.
            start_new_session=True,
        )
        self._said: deque[str] = deque(maxlen=40)
        self._listener = threading.Thread(target=self._listen, name="ffmpeg messages", daemon=True)
        self._listener.start()
        if read_bytes is not None:
            threading.Thread(target=self._pass_on, args=(read_bytes,), name="ffmpeg input", daemon=True).start()
        assert self._process.stdout is not None
        try:
            decoder = wav_decoder(self._read, name)
        except AudioError:
            decoder = None
        except BaseException:
            self.close()
            raise
        if decoder is None:
            self.close()
            if any(_NO_SOUND in line for line in self._said):
                raise AudioError(f"{name} holds no sound.")
            raise AudioError(f"{name} is cut short or damaged and cannot be read as {kind} sound{_told(self._said)}.")
        self._decoder, self.samplerate = decoder, decoder.samplerate
        self.frames: int | None = None

    def _read(self, n: int) -> bytes:
        assert self._process.stdout is not None
        return os.read(self._process.stdout.fileno(), n)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said.append(line.decode(errors="replace").strip())

    def _pass_on(self, read_bytes: Callable[[int], bytes]) -> None:
        assert self._process.stdin is not None
        # It may have heard enough.
        with contextlib.suppress(OSError, ValueError):
            while piece := read_bytes(1 << 16):
                self._process.stdin.write(piece)
                self._process.stdin.flush()
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.close()

    def read(self, n: int) -> np.ndarray:
        return self._decoder.read(n)

    def cut(self, seconds: float) -> Cut | None:
        self._process.wait()
        self._listener.join(1)
        ended_early = any(word in line for line in self._said for word in _CUT_WORDS)
        return Cut() if ended_early or self._process.returncode else None

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._listener.join(1)
        assert self._process.stdout is not None and self._process.stderr is not None
        self._process.stdout.close()
        self._process.stderr.close()


class AfconvertDecoder:
    """A file converted as a whole, and what came of it. `afconvert` tells what a file is by its ending."""

    def __init__(self, path: Path, kind: str, name: str):
        self._folder = ScratchFolder()
        try:
            wav = self._folder.path / "sound.wav"
            known = self._folder.path / f"sound{path.suffix or _ENDINGS.get(kind, '')}"
            known.symlink_to(path.absolute())
            done = subprocess.run(
                ["afconvert", "-f", "WAVE", "-d", "LEF32", str(known), str(wav)], capture_output=True, check=False
            )
            if done.returncode or not wav.is_file():
                said = (done.stderr or done.stdout).decode(errors="replace").splitlines()
                raise AudioError(f"{name} is cut short or damaged and cannot be read as {kind} sound{_told(said)}.")
            file = open(wav, "rb")  # noqa: SIM115
            decoder = wav_decoder(file.read, name, file.close)
            if decoder is None:
                raise AudioError(f"{name} cannot be read as {kind} sound.")
        except BaseException:
            self._folder.remove()
            raise
        self._decoder, self.samplerate, self.frames = decoder, decoder.samplerate, decoder.frames

    def read(self, n: int) -> np.ndarray:
        return self._decoder.read(n)

    def cut(self, seconds: float) -> Cut | None:
        return None

    def close(self) -> None:
        self._decoder.close()
        self._folder.remove()
