"""From a name to sound: a file, a pipe or standard input, of whatever kind it is found to be."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from ..defaults import RAW_FORMATS
from ..errors import AudioError
from ..output import OutputFile, ScratchFolder
from . import converters
from .kinds import HEAD_BYTES, LIBSNDFILE, SEEKING, kind_of
from .pcm import Cut, Decoder, PcmDecoder, Raw, wav_decoder
from .quiet import without_decoder_messages
from .whole import Walk

# libsndfile gives up a whole block for a damaged frame in it.
_BLOCK = 4096
# What tells most kinds apart, and the least that does.
_MAGIC_BYTES = 12


class UnknownSound(AudioError):
    """No sound of a kind that can be read. `told`: the same for those who have no command's flags."""

    def __init__(self, found: str):
        self.told = f"{found} Expected wav, flac, ogg, mp3, m4a, mp4, webm, aac or amr."
        super().__init__(self.told.removesuffix(".") + "; sound without a header needs --raw RATE.")


def open_sound(path: str | Path, name: str, raw: Raw | None = None) -> Decoder:
    """Raises `AudioError` for what is no sound, `OSError` for what the system refuses."""
    if str(path) == "-":
        return _open_stream(_standard_input(), name, raw)
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise AudioError(f"the audio file {path} does not exist.") from None
    except ValueError as e:
        raise AudioError(f"{path} cannot be read: {e}.") from None
    if stat.S_ISDIR(mode):
        raise AudioError(f"{path} is a folder; expected an audio file.")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path} may not be read by this user.")
    if not stat.S_ISREG(mode):
        return _open_stream(open(path, "rb", buffering=0), name, raw)
    if not path.stat().st_size:
        raise AudioError(f"{path} is empty.")
    return _open_file(path, name, raw)


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise AudioError("standard input is closed; pipe an audio file into it.")
    return sys.stdin.buffer


def _open_file(path: Path, name: str, raw: Raw | None) -> Decoder:
    if raw is not None:
        file = open(path, "rb")  # noqa: SIM115
        return _headerless(file.read, raw, file.close, path.stat().st_size)
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    kind = kind_of(head, whole=len(head) < HEAD_BYTES)
    if kind is None:
        raise UnknownSound(f"{name} is not an audio file that can be read.")
    if kind not in LIBSNDFILE:
        return _Watched(converters.convert(path, kind, name), path, kind)
    try:
        decoder = SndfileDecoder(os.open(path, os.O_RDONLY | os.O_CLOEXEC), name, path, kind)
        return (kind == "wav" and not decoder.frames and _never_finished(path, name)) or decoder
    except soundfile.LibsndfileError as e:
        # A known container with sound of a kind that is not, or damage: then another program has no more luck.
        return _second_opinion(path, kind, name, e.error_string)


def _never_finished(path: Path, name: str) -> Decoder | None:
    """Wav sound whose header was never told how much follows: its recorder crashed, or wrote to a pipe."""
    file = open(path, "rb")  # noqa: SIM115
    decoder = wav_decoder(file.read, name, file.close)
    if decoder is None or file.tell() >= path.stat().st_size:
        file.close()
        return None
    return decoder


def _second_opinion(path: Path, kind: str, name: str, reason: str) -> Decoder:
    try:
        return _Watched(converters.convert(path, kind, name), path, kind)
    except AudioError:
        raise UnknownSound(f"{name} is not an audio file that can be read ({reason.rstrip('.')}).") from None


def _headerless(
    read_bytes: Callable[[int], bytes], raw: Raw, close: Callable[[], None], length: int | None = None
) -> Decoder:
    return PcmDecoder(read_bytes, raw.rate, 1, RAW_FORMATS[raw.form], length, close)


class _Forward(soundfile.SoundFile):
    """Read from front to back, without the seek that soundfile makes after every read: it fails at the end of a flac whose header
    does not tell its length, as written by programs that cannot go back, and the last samples would be lost with it.
    """

    def seekable(self) -> bool:
        return False


class SndfileDecoder:
    """A file through libsndfile, by its descriptor (which is closed at the end)."""

    def __init__(self, descriptor: int, name: str, path: Path, kind: str):
        self._fd, self._name, self._path, self._kind = descriptor, name, path, kind
        self._quietly = without_decoder_messages if kind == "mp3" else contextlib.nullcontext
        try:
            with self._quietly():
                self._file = _Forward(descriptor, closefd=False)
        except BaseException:
            os.close(descriptor)
            raise
        self.samplerate = self._file.samplerate
        frames = self._file.frames
        self.frames: int | None = frames if 0 <= frames < 2**62 else None
        self._samples, self._ended_early = 0, False

    def read(self, n: int) -> np.ndarray:
        try:
            with self._quietly():
                block = self._file.read(min(n, _BLOCK), dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as e:
            if self._samples and os.lseek(self._fd, 0, os.SEEK_CUR) >= os.fstat(self._fd).st_size:
                self._ended_early = True
                return np.zeros((0, self._file.channels), np.float32)
            raise AudioError(f"{self._name} is damaged and cannot be decoded ({e.error_string.rstrip('.')}).") from None
        self._samples += len(block)
        return block

    def cut(self, seconds: float) -> Cut | None:
        found = _walked(self._path, self._kind, seconds)
        return Cut() if found is None and self._ended_early else found

    def close(self) -> None:
        self._file.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _walked(path: Path, kind: str, seconds: float) -> Cut | None:
    walk = Walk(kind)
    with open(path, "rb") as file:
        walk.through(file, path.stat().st_size)
    return walk.cut(seconds)


class _Watched:
    """A decoder that does not see the bytes itself, and the file they are in."""

    def __init__(self, decoder: Decoder, path: Path, kind: str):
        self._decoder, self._path, self._kind = decoder, path, kind
        self.samplerate, self.frames = decoder.samplerate, decoder.frames
        self.read, self.close = decoder.read, decoder.close

    def cut(self, seconds: float) -> Cut | None:
        return _walked(self._path, self._kind, seconds) or self._decoder.cut(seconds)


# Pipes -----------------------------------------------------------------------------------------------------------------


class _Stream:
    """Bytes as they come. What was looked at is given again; `walk` sees all of them."""

    def __init__(self, file: BinaryIO):
        self._file, self._ahead, self.walk = file, b"", Walk("")
        try:
            # Not through the buffer of standard input: a thread that waits there keeps the program from ending.
            descriptor: int | None = file.fileno()
        except (OSError, io.UnsupportedOperation, AttributeError):
            descriptor = None
        self._descriptor = descriptor
        self.live = descriptor is not None and not stat.S_ISREG(os.fstat(descriptor).st_mode)

    def _more(self, n: int) -> bytes:
        return os.read(self._descriptor, n) if self._descriptor is not None else self._file.read(n)

    def look(self, n: int) -> bytes:
        """The first `n` bytes, fewer at the end."""
        while len(self._ahead) < n:
            piece = self._more(n - len(self._ahead))
            if not piece:
                break
            self._ahead += piece
        return self._ahead[:n]

    def read(self, n: int) -> bytes:
        piece, self._ahead = (self._ahead[:n], self._ahead[n:]) if self._ahead else (self._more(n), b"")
        self.walk.feed(piece)
        return piece

    def give_back(self, data: bytes) -> None:
        """To be read again from the beginning."""
        self._ahead, self.walk = data + self._ahead, Walk(self.walk.kind)

    def close(self) -> None:
        if self._file is not getattr(sys.stdin, "buffer", None):
            self._file.close()


def _open_stream(file: BinaryIO, name: str, raw: Raw | None) -> Decoder:
    stream = _Stream(file)
    if raw is not None:
        return _headerless(stream.read, raw, stream.close)
    head = stream.look(_MAGIC_BYTES)
    if not head:
        raise AudioError(f"{name} is empty; pipe an audio file into it.")
    kind = kind_of(head)
    if kind is None or head[:3] == b"ID3":
        head = stream.look(HEAD_BYTES)
        kind = kind_of(head, whole=len(head) < HEAD_BYTES)
    if kind is None:
        raise UnknownSound(f"{name} is not sound that can be read.")
    stream.walk = Walk(kind)
    decoder = _decoder_of(stream, name, kind)
    return _Piped(decoder, stream)


def _decoder_of(stream: _Stream, name: str, kind: str) -> Decoder:
    if kind == "wav":
        header: list[bytes] = []

        def read_header(n: int) -> bytes:
            if decoder is None:
                header.append(stream.read(n))
                return header[-1]
            return stream.read(n)

        decoder: Decoder | None = None
        decoder = wav_decoder(read_header, name, stream.close)
        if decoder is not None:
            return decoder
        stream.give_back(b"".join(header))
    if stream.live and kind not in SEEKING and converters.have_ffmpeg():
        return converters.FfmpegDecoder(kind, name, read_bytes=stream.read)
    return _Spooled(stream, name, kind)


class _Spooled:
    """A stream kept in a temporary file first, for readers that go back and forth."""

    def __init__(self, stream: _Stream, name: str, kind: str):
        self._folder = ScratchFolder()
        try:
            path = self._folder.path / f"sound.{kind}"
            with OutputFile(path) as output:
                while piece := stream.read(1 << 20):
                    output.write(piece)
                output.commit()
            self._decoder = _open_file(path, name, None)
        except BaseException:
            self._folder.remove()
            raise
        self.samplerate, self.frames = self._decoder.samplerate, self._decoder.frames
        self.read, self.cut = self._decoder.read, self._decoder.cut

    def close(self) -> None:
        self._decoder.close()
        self._folder.remove()


class _Piped:
    """A decoder of a stream, which was followed while it came by."""

    def __init__(self, decoder: Decoder, stream: _Stream):
        self._decoder, self._stream = decoder, stream
        self.samplerate, self.frames = decoder.samplerate, decoder.frames
        self.read = decoder.read

    def cut(self, seconds: float) -> Cut | None:
        return self._stream.walk.cut(seconds) or self._decoder.cut(seconds)

    def close(self) -> None:
        self._decoder.close()
        self._stream.close()
