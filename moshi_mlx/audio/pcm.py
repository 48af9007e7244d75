"""Samples as bytes: sound without a header, and wav sound from a pipe, decoded while it comes."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..errors import AudioError

# Bytes per sample of what is understood in a wav stream, by format code and bits.
_WAV_TYPES = {(1, 8): "u1", (1, 16): "<i2", (1, 24): "<i3", (1, 32): "<i4", (3, 32): "<f4", (3, 64): "<f8"}
_EXTENSIBLE = 0xFFFE
# Programs that write to a pipe say one of these for a length they do not know.
_ENDLESS = 0x7FFFF000
_MOST_CHANNELS = 64
_MOST_HEADER = 1 << 20


@dataclass(frozen=True)
class Raw:
    """Sound without a header: mono samples, `rate` of them a second, `form` one of `moshi_mlx.defaults.RAW_FORMATS`."""

    rate: int
    form: str = "s16le"


@dataclass(frozen=True)
class Cut:
    """A recording whose end is missing; `whole`: how long it would be, in seconds, where that can be told."""

    whole: float | None = None


class Decoder(Protocol):
    """Sound of one file or stream. `frames`: samples per channel, None where nobody knows yet."""

    samplerate: int
    frames: int | None

    def read(self, n: int) -> np.ndarray:
        """Up to `n` samples, float32 `[m, channels]`, at least one as soon as it is there; none at the end."""

    def cut(self, seconds: float) -> Cut | None:
        """After the end, when `seconds` have been read: what is missing."""

    def close(self) -> None: ...


class PcmDecoder:
    """Plain samples of a byte stream. `read_bytes(n)` gives up to n bytes as soon as there are some, none at the end."""

    def __init__(
        self,
        read_bytes: Callable[[int], bytes],
        rate: int,
        channels: int,
        kind: str,
        length: int | None = None,
        close: Callable[[], None] | None = None,
    ):
        self.samplerate, self._channels, self._kind = rate, channels, kind
        self._width = int(kind[-1]) * channels
        self.frames = None if length is None else length // self._width
        self._read_bytes, self._close = read_bytes, close
        self._length = self._left = length
        self._rest = b""

    def read(self, n: int) -> np.ndarray:
        data = self._rest
        while len(data) < self._width:
            wanted = n * self._width - len(data)
            piece = self._read_bytes(wanted if self._left is None else min(wanted, self._left))
            if not piece:
                self._rest = b""
                return np.zeros((0, self._channels), np.float32)
            data += piece
            if self._left is not None:
                self._left -= len(piece)
        whole = len(data) // self._width * self._width
        self._rest = data[whole:]
        return _floats(data[:whole], self._kind).reshape(-1, self._channels)

    def cut(self, seconds: float) -> Cut | None:
        if not self._left or self._length is None:
            return None
        return Cut(self._length / self._width / self.samplerate)

    def close(self) -> None:
        if self._close is not None:
            self._close()


def _floats(data: bytes, kind: str) -> np.ndarray:
    if kind == "<i3":
        low = np.frombuffer(data, np.uint8).reshape(-1, 3)
        wide = np.zeros((len(low), 4), np.uint8)
        wide[:, 1:] = low
        return wide.view("<i4")[:, 0].astype(np.float32) / 2**31
    x = np.frombuffer(data, kind)
    if kind == "u1":
        return (x.astype(np.float32) - 128) / 128
    if kind[1] == "i":
        return x.astype(np.float32) / 2 ** (8 * x.itemsize - 1)
    return x.astype(np.float32)


def wav_decoder(
    read_bytes: Callable[[int], bytes], name: str, close: Callable[[], None] | None = None
) -> PcmDecoder | None:
    """Wav sound from its beginning on, without looking ahead; None where its samples are of another kind (ADPCM, A-law).

    Raises `AudioError` for a header that cannot be.
    """

    def exactly(n: int) -> bytes:
        data = b""
        while len(data) < n:
            piece = read_bytes(n - len(data))
            if not piece:
                raise AudioError(f"{name} is cut short: it ends within its header.")
            data += piece
        return data

    exactly(12)
    layout: tuple[int, int, int, int] | None = None
    long_data, seen = None, 0
    while True:
        chunk, size = struct.unpack("<4sI", exactly(8))
        if chunk == b"data":
            break
        seen += size
        if seen > _MOST_HEADER:
            raise AudioError(f"{name} has no sound in its first megabyte; its header is damaged.")
        body = exactly(size + size % 2)
        if chunk == b"ds64" and size >= 16:
            long_data = struct.unpack_from("<Q", body, 8)[0]
        elif chunk == b"fmt " and size >= 16:
            code, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", body)
            if code == _EXTENSIBLE and size >= 26:
                code = struct.unpack_from("<H", body, 24)[0]
            layout = code, channels, rate, bits
    if layout is None:
        raise AudioError(f"{name} does not say what its samples are; its header is damaged.")
    code, channels, rate, bits = layout
    kind = _WAV_TYPES.get((code, bits))
    if kind is None or not 1 <= channels <= _MOST_CHANNELS or not rate:
        return None
    if long_data is not None and size == 2**32 - 1:
        size = long_data
    return PcmDecoder(read_bytes, rate, channels, kind, None if _endless(size) else size, close)


def _endless(size: int) -> bool:
    """Whether a length in a wav header means that none is known: 0 was never renewed, the others are the highest that fit."""
    return size == 0 or _ENDLESS <= size < 2**31 or (size >= 2**32 - 256 and size < 2**32)
