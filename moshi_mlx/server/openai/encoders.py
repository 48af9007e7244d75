"""Speech in the formats of `/v1/audio/speech`, encoded while it is spoken: nothing waits for the end, nothing is written twice.

wav and pcm are bare samples; Opus is sphn's; mp3 and flac are libsndfile's. No library here writes AAC.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import soundfile
import sphn

from ...audio.wav import stream_header, to_int16
from ..ogg import PacketReader, PageWriter
from ..opus import GRANULES_PER_SAMPLE, HEAD, SERIAL, TAGS

RATE, FRAME = 24000, 1920
# Samples (at 48 kHz) by which Opus is late at 24 kHz: 2.5 ms to look ahead and 4 ms that make its two halves fit (libopus).
PRE_SKIP = 312
# libsndfile's scale from 160 to 8 kbit/s: 64, at a constant rate, from which players tell the length of what has no table of contents.
MP3_LEVEL = 0.6


class Encoder(Protocol):
    content_type: str

    def encode(self, pcm: np.ndarray) -> bytes:
        """Float32 `[n]`, 24 kHz mono -> what is ready of the format, headers before it."""

    def finish(self) -> bytes:
        """What is left."""

    def close(self) -> None:
        """Let go of what is held, after `finish` or instead of it."""


class Samples:
    """16 bits, little endian; `header` first."""

    def __init__(self, content_type: str, header: bytes = b""):
        self.content_type, self._header = content_type, header

    def encode(self, pcm: np.ndarray) -> bytes:
        header, self._header = self._header, b""
        return header + to_int16(pcm).tobytes()

    def finish(self) -> bytes:
        return self.encode(np.zeros(0, np.float32))

    def close(self) -> None:
        pass


class Opus:
    """Ogg/Opus, a page for every 40 ms, with the delay and the end that players count on (RFC 7845)."""

    content_type = "audio/ogg"

    def __init__(self) -> None:
        self._encoder, self._packets, self._pages = sphn.OpusStreamWriter(RATE), PacketReader(), PageWriter(SERIAL)
        self._rest = np.zeros(0, np.float32)
        self._coded, self._begun = 0, False

    def encode(self, pcm: np.ndarray) -> bytes:
        pages = self._headers()
        pcm = np.concatenate([self._rest, pcm])
        whole = len(pcm) - len(pcm) % FRAME
        self._rest = pcm[whole:]
        for at in range(0, whole, FRAME):
            for packet, coded in self._sound(pcm[at : at + FRAME]):
                pages.append(self._pages.page(packet, coded * GRANULES_PER_SAMPLE))
        return b"".join(pages)

    def _headers(self) -> list[bytes]:
        if self._begun:
            return []
        self._begun = True
        head = HEAD + struct.pack("<BBHIHB", 1, 1, PRE_SKIP, RATE, 0, 0)
        return [self._pages.page(p, 0) for p in (head, TAGS + struct.pack("<I9sI", 9, b"moshi_mlx", 0))]

    def _sound(self, frame: np.ndarray) -> Iterator[tuple[bytes, int]]:
        """Packets of a frame, and how many samples have been coded with each."""
        packets = self._packets.feed(self._encoder.append_pcm(np.ascontiguousarray(frame, np.float32)))
        sound = [p for p in packets if not p.startswith((HEAD, TAGS))]
        for packet in sound:
            self._coded += len(frame) // len(sound)
            yield packet, self._coded

    def finish(self) -> bytes:
        # The end of it is still in the encoder: silence pushes it out, and the granule says where in the packet it is.
        end = (self._coded + len(self._rest)) * GRANULES_PER_SAMPLE + PRE_SKIP
        rest = np.pad(self._rest, (0, 2 * FRAME - len(self._rest)))
        pages = self._headers()
        for packet, coded in (p for frame in rest.reshape(2, FRAME) for p in self._sound(frame)):
            granule = min(end, coded * GRANULES_PER_SAMPLE)
            pages.append(self._pages.page(packet, granule, last=granule == end))
            if granule == end:
                break
        return b"".join(pages)

    def close(self) -> None:
        pass


class Sndfile:
    """A format of libsndfile's, handed on as it is written; what it would go back for at the end, such as the length, stays open."""

    def __init__(self, content_type: str, **form: Any):
        self.content_type, self._sink = content_type, _Sink()
        self._file = soundfile.SoundFile(self._sink, "w", RATE, 1, **form)

    def encode(self, pcm: np.ndarray) -> bytes:
        self._file.write(to_int16(pcm))
        return self._sink.take()

    def finish(self) -> bytes:
        self._file.close()
        return self._sink.take()

    def close(self) -> None:
        self._file.close()


class _Sink:
    """A file for libsndfile whose written bytes have gone already: writing over them changes nothing."""

    def __init__(self) -> None:
        self._new: list[bytes] = []
        self._position = self._size = 0

    def write(self, data: bytes) -> int:
        if self._position == self._size:
            self._new.append(bytes(data))
            self._size += len(data)
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = (0, self._position, self._size)[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def take(self) -> bytes:
        new, self._new = self._new, []
        return b"".join(new)


FORMATS: dict[str, Callable[[], Encoder]] = {
    "mp3": lambda: Sndfile("audio/mpeg", format="MP3", bitrate_mode="CONSTANT", compression_level=MP3_LEVEL),
    "opus": Opus,
    "flac": lambda: Sndfile("audio/flac", format="FLAC", subtype="PCM_16"),
    "wav": lambda: Samples("audio/wav", stream_header(1, RATE)),
    "pcm": lambda: Samples("audio/pcm"),
}
