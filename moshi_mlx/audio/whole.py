"""Whether a recording is whole: what its container promises, followed from the first byte to the last without decoding.

Each kind is a generator that asks for bytes (a positive number, which it is given) or passes over them (a negative one). It ends
when nothing further can be told. The end of the bytes anywhere else than between two units means that the rest is missing.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import BinaryIO

from .kinds import adts_frame, mp3_frame, mp3_rate, mp3_samples, tag_bytes
from .pcm import Cut, _endless

# Of a length to the sample, for what was rounded on its way.
_TOLERANCE = 0.002
_Steps = Generator[int, bytes, None]


@dataclass
class Found:
    """What a walk has seen: it is `between` units (or at an end that says so), something is `missing` although the rest cannot be
    followed; the promised length in seconds (`exact`: to the sample) and bytes."""

    between: bool = False
    missing: bool = False
    seconds: float | None = None
    exact: bool = False
    bytes: int = 0


def _wav(found: Found) -> _Steps:
    yield 12
    rate, long_data = 0, None
    while True:
        name, size = struct.unpack("<4sI", (yield 8))
        if name == b"ds64" and size >= 16:
            body = yield size
            long_data = struct.unpack_from("<Q", body, 8)[0]
        elif name == b"fmt " and 16 <= size < 4096:
            rate = struct.unpack_from("<I", (yield size + size % 2), 8)[0]
        elif name == b"data":
            size = long_data if long_data is not None and size == 2**32 - 1 else size
            if _endless(size):
                return
            found.seconds = size / rate if rate else None
            yield -size
            return
        else:
            yield -(size + size % 2)


def _w64(found: Found) -> _Steps:
    """Names of 16 bytes, sizes that count themselves, everything in steps of 8."""
    yield 40
    rate = 0
    while True:
        name, size = struct.unpack("<4s12xQ", (yield 24))
        if not 24 <= size < 2**63:
            return
        if name == b"fmt " and 40 <= size < 4096:
            rate = struct.unpack_from("<I", (yield (size + 7 & ~7) - 24), 8)[0]
        elif name == b"data":
            found.seconds = (size - 24) / rate if rate else None
            yield -(size - 24)
            return
        else:
            yield -((size + 7 & ~7) - 24)


def _voc(found: Found) -> _Steps:
    (start,) = struct.unpack("<20xH4x", (yield 26))
    yield -max(0, start - 26)
    while True:
        found.between = True
        kind = (yield 1)[0]
        if kind == 0:
            return
        found.between = False
        size = int.from_bytes((yield 3), "little")
        if kind == 9 and size >= 12:
            rate, bits, channels = struct.unpack_from("<IBB", (yield 12))
            size -= 12
            found.seconds = (found.seconds or 0) + size * 8 / max(1, bits * channels * rate)
        yield -size


def _nist(found: Found) -> _Steps:
    size = int((yield 16)[8:].split()[0])
    if not 16 < size < 1 << 16:
        return
    fields = dict(re.findall(rb"(\w+) -i (\d+)", (yield size - 16)))
    frames, width, channels, rate = (
        int(fields.get(name, b"0")) for name in (b"sample_count", b"sample_n_bytes", b"channel_count", b"sample_rate")
    )
    found.seconds = frames / rate if rate else None
    yield -frames * width * channels


def _aiff(found: Found) -> _Steps:
    yield 12
    while True:
        name, size = struct.unpack(">4sI", (yield 8))
        if name == b"COMM" and 18 <= size < 4096:
            body = yield size + size % 2
            frames, exponent, mantissa = struct.unpack_from(">I2xHQ", body, 2)
            rate = mantissa * 2.0 ** ((exponent & 0x7FFF) - 16383 - 63)
            found.seconds = frames / rate if rate else None
        else:
            yield -(size + size % 2)
            if name == b"SSND":
                return


def _au(found: Found) -> _Steps:
    offset, size = struct.unpack(">4xII", (yield 12))
    if size != 2**32 - 1:
        yield -(max(offset, 12) - 12 + size)


def _caf(found: Found) -> _Steps:
    yield 8
    rate = samples_per_byte = 0.0
    while True:
        found.between = bool(samples_per_byte)
        name, size = struct.unpack(">4sq", (yield 12))
        found.between = False
        if size < 0:
            return
        if name == b"desc" and size == 32:
            rate, packet, samples = struct.unpack(">d8xII8x", (yield size))
            samples_per_byte = samples / packet if packet else 0.0
        elif name == b"data":
            found.seconds = (size - 4) * samples_per_byte / rate if samples_per_byte and rate else None
            yield -size
            samples_per_byte = samples_per_byte or 1.0
        else:
            yield -size


def _flac(found: Found) -> _Steps:
    head = yield 4
    while head[:3] == b"ID3":
        yield -(tag_bytes(head + (yield 6)) - 10)
        head = yield 4
    info = yield 38
    packed = int.from_bytes(info[14:22], "big")
    rate, samples = packed >> 44, packed & (1 << 36) - 1
    found.seconds, found.exact = (samples / rate, True) if rate and samples else (None, False)


def _wavpack(found: Found) -> _Steps:
    while True:
        found.between = True
        block = yield 32
        found.between = False
        name, size = struct.unpack_from("<4sI", block)
        if name != b"wvpk":
            return
        yield -(size - 24)


_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _wma(found: Found) -> _Steps:
    while True:
        found.between = True
        name, size = struct.unpack("<16sQ", (yield 24))
        found.between = False
        if name == _ASF_HEADER:
            yield -6
        elif name == _ASF_PROPERTIES and 80 <= size < 4096:
            found.bytes, duration, ahead = struct.unpack_from("<16xQ16xQ8xQ", (yield size - 24))
            found.seconds = duration / 1e7 - ahead / 1e3
        else:
            yield -(size - 24)


def _ogg(found: Found) -> _Steps:
    while True:
        page = yield 27
        if page[:4] != b"OggS":
            return
        yield -sum((yield page[26]) if page[26] else b"")
        # The last page says that it is.
        found.between = bool(page[5] & 4)


def _mp3(found: Found) -> _Steps:
    frames, promised = 0, None
    while True:
        found.between = promised is None or frames >= promised
        head = yield 4
        found.between = False
        if head[:3] == b"ID3":
            yield -(tag_bytes(head + (yield 6)) - 10)
            continue
        length = mp3_frame(head)
        if length is None:
            # Tags at the end, or filling.
            found.missing = promised is not None and frames < promised
            return
        body = yield length - 4
        if not frames and promised is None and (promised := _promised_frames(body)) is not None:
            found.seconds = promised * mp3_samples(head) / mp3_rate(head)
            continue
        frames += 1


def _promised_frames(body: bytes) -> int | None:
    """What the first frame says of all others, where the encoder left a note."""
    for at in (32, 17, 9):
        if body[at : at + 4] in (b"Xing", b"Info") and len(body) >= at + 12 and body[at + 7] & 1:
            return struct.unpack_from(">I", body, at + 8)[0]
    if body[32:36] == b"VBRI" and len(body) >= 50:
        return struct.unpack_from(">I", body, 46)[0]
    return None


def _aac(found: Found) -> _Steps:
    while True:
        found.between = True
        head = yield 7
        found.between = False
        if head[:3] == b"ID3":
            yield -(tag_bytes(head + (yield 3)) - 10)
            continue
        length = adts_frame(head)
        if length is None:
            return
        yield -(length - 7)


_AMR = (12, 13, 15, 17, 19, 20, 26, 31, 5, 0, 0, 0, 0, 0, 0, 0)
_AMR_WIDE = (17, 23, 32, 36, 40, 46, 50, 58, 60, 5, 0, 0, 0, 0, 0, 0)


def _amr(found: Found) -> _Steps:
    sizes = _AMR
    if (yield 6) != b"#!AMR\n":
        yield 3
        sizes = _AMR_WIDE
    while True:
        found.between = True
        mode = (yield 1)[0] >> 3 & 15
        found.between = False
        yield -sizes[mode]


def _mp4(found: Found) -> _Steps:
    while True:
        found.between = True
        size, name = struct.unpack(">I4s", (yield 8))
        found.between = False
        if size == 1:
            size = struct.unpack(">Q", (yield 8))[0] - 8
        if size == 0 or not name.isascii():
            return
        if name == b"mvhd" and 28 <= size < 4096:
            body = yield size - 8
            scale, length = struct.unpack_from(">IQ" if body[0] else ">II", body, 20 if body[0] else 12)
            found.seconds = length / scale if scale and length else None
        elif name != b"moov":
            yield -(size - 8)


_SEGMENT, _CLUSTER, _INFO, _DURATION, _SCALE = 0x18538067, 0x1F43B675, 0x1549A966, 0x4489, 0x2AD7B1


def _webm(found: Found) -> _Steps:
    scale, at = 1_000_000, 0
    while True:
        found.between = True
        first = yield 1
        found.between = False
        name, width = _number(first + (yield _extra(first)), keep_marker=True)
        lead = yield 1
        size, wide = _number(lead + (yield _extra(lead)), keep_marker=False)
        at += width + wide
        unknown = size == (1 << 7 * wide) - 1
        if name == _SEGMENT and not unknown:
            found.bytes = at + size
        if name in (_SEGMENT, _INFO) or (name == _CLUSTER and unknown):
            continue
        if unknown:
            return
        if name in (_SCALE, _DURATION) and size <= 8:
            body = yield size
            if name == _SCALE:
                scale = int.from_bytes(body, "big")
            else:
                found.seconds = struct.unpack(">d" if size == 8 else ">f", body)[0] * scale / 1e9
        else:
            yield -size
        at += size


def _extra(first: bytes) -> int:
    """Bytes that follow the first of a number of variable length."""
    return 8 - first[0].bit_length() if first[0] else 7


def _number(data: bytes, keep_marker: bool) -> tuple[int, int]:
    value, width = int.from_bytes(data, "big"), len(data)
    return (value if keep_marker else value & ((1 << 7 * width) - 1)), width


_WALKS: dict[str, Callable[[Found], _Steps]] = {
    "wav": _wav, "aiff": _aiff, "au": _au, "ogg": _ogg, "mp3": _mp3, "aac": _aac, "amr": _amr, "mp4": _mp4, "webm": _webm,
    "caf": _caf, "flac": _flac, "wavpack": _wavpack, "wma": _wma, "w64": _w64,
    "voc": _voc, "nist": _nist,
}  # fmt: skip


class Walk:
    """Follows a recording of a kind while its bytes come by (`feed`), or through a file (`through`)."""

    def __init__(self, kind: str):
        self.kind, self._found, self._position = kind, Found(), 0
        steps = _WALKS.get(kind)
        self._steps = None if steps is None else steps(self._found)
        self._buffer, self._wanted, self._skip = bytearray(), 0, 0
        if self._steps is not None:
            self._next(None)

    def _next(self, given: bytes | None) -> None:
        """Go on to what has to be waited for."""
        assert self._steps is not None
        try:
            wish = self._steps.send(given)  # type: ignore[arg-type]
            while wish == 0:
                wish = self._steps.send(b"")
        except (StopIteration, struct.error, IndexError, OverflowError, ValueError):
            # Nothing further can be told: of what was seen so far, all was there.
            self._steps = None
            return
        self._wanted, self._skip = max(0, wish), max(0, -wish)

    def feed(self, data: bytes) -> None:
        at = 0
        self._position += len(data)
        while self._steps is not None and at < len(data):
            if self._skip:
                step = min(self._skip, len(data) - at)
                self._skip, at = self._skip - step, at + step
                if not self._skip:
                    self._next(b"")
                continue
            piece = data[at : at + self._wanted - len(self._buffer)]
            self._buffer += piece
            at += len(piece)
            if len(self._buffer) == self._wanted:
                given = bytes(self._buffer)
                self._buffer.clear()
                self._next(given)

    def through(self, file: BinaryIO, size: int) -> None:
        """The whole of a file of `size` bytes, passing over what need not be seen."""
        while self._steps is not None and self._position < size:
            if self._skip > 1:
                step = min(self._skip, size - self._position) - 1
                file.seek(step, 1)
                self._position, self._skip = self._position + step, self._skip - step
            data = file.read(max(1, self._wanted))
            if not data:
                return
            self.feed(data)

    def cut(self, seconds: float = math.inf) -> Cut | None:
        """After the last byte, of which `seconds` of sound were made: what is missing, None where all is there or nobody can tell."""
        found = self._found
        if found.exact and found.seconds is not None and seconds < found.seconds - _TOLERANCE:
            return Cut(found.seconds)
        waiting = self._steps is not None and (not found.between or bool(self._buffer) or self._skip > 0)
        return Cut(found.seconds) if waiting or found.missing or found.bytes > self._position else None
