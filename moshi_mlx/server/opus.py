"""Sound on the wire: Ogg/Opus, or bare PCM for who asks. 24 kHz mono on our side of both.

sphn codes; its stream reader dies of the first byte out of place, so it only ever sees pages made here from whole packets.
"""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np
import sphn

from .ogg import PacketReader, PageWriter

RATE = 24000
# Opus counts in 48 kHz samples whatever goes in (RFC 7845).
GRANULES_PER_SAMPLE = 2
HEAD, TAGS = b"OpusHead", b"OpusTags"
SERIAL = 42


class SoundReader(Protocol):
    def decode(self, payload: bytes) -> np.ndarray:
        """The next piece of the client's stream -> float32 `[n]`, any n."""

    def skip(self, payload: bytes) -> None:
        """The same where nobody listens yet: headers are kept, sound is not decoded."""


class SoundWriter(Protocol):
    def encode(self, pcm: np.ndarray) -> bytes:
        """A frame float32 `[1920]` -> the next piece of our stream."""


class OpusReader:
    """A client's Ogg/Opus stream, decoded as far as it is one. `lost` counts packets that were none of Opus."""

    def __init__(self) -> None:
        self.lost = 0
        self._packets = PacketReader()
        self._restart()

    @property
    def skipped(self) -> int:
        """Bytes between the pages."""
        return self._packets.skipped

    def decode(self, payload: bytes) -> np.ndarray:
        parts = [self._packet(p) for p in self._packets.feed(payload)]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def skip(self, payload: bytes) -> None:
        self._packets.feed(payload)

    def _packet(self, packet: bytes) -> np.ndarray:
        # Which of its two headers a client sends, and when, makes no difference: Opus packets describe themselves.
        if packet.startswith(HEAD):
            self._restart()
        elif packet and not packet.startswith(TAGS):
            try:
                return self._decoder.append_bytes(self._pages.page(packet, 0))
            except ValueError:
                self.lost += 1
                self._restart()
        return np.zeros(0, np.float32)

    def _restart(self) -> None:
        self._decoder, self._pages = sphn.OpusStreamReader(RATE), PageWriter(SERIAL)
        head = HEAD + struct.pack("<BBHIHB", 1, 1, 0, RATE, 0, 0)
        self._decoder.append_bytes(self._pages.page(head, 0))
        self._decoder.append_bytes(self._pages.page(TAGS + bytes(8), 0))


class OpusWriter:
    """Our Ogg/Opus stream: the headers go out with the first frame."""

    def __init__(self) -> None:
        self._encoder, self._packets = sphn.OpusStreamWriter(RATE), PacketReader()
        self._pages, self._samples = PageWriter(SERIAL), 0

    def encode(self, pcm: np.ndarray) -> bytes:
        packets = self._packets.feed(self._encoder.append_pcm(np.ascontiguousarray(pcm, np.float32)))
        headers = [p for p in packets if p.startswith((HEAD, TAGS))]
        pages = [self._pages.page(p, 0) for p in headers]
        # sphn makes packets of 40 ms and less: a frame is several, all of one length.
        sound = packets[len(headers) :]
        for packet in sound:
            self._samples += len(pcm) // len(sound)
            pages.append(self._pages.page(packet, self._samples * GRANULES_PER_SAMPLE))
        return b"".join(pages)


class Pcm:
    """Bare samples, little endian: `pcm_s16le` or `pcm_f32le`. Reader and writer in one, for one connection."""

    def __init__(self, kind: str):
        self._type = np.dtype(PCM_TYPES[kind])
        self._rest = b""

    def decode(self, payload: bytes) -> np.ndarray:
        data = self._rest + payload
        whole = len(data) - len(data) % self._type.itemsize
        self._rest = data[whole:]
        samples = np.frombuffer(data[:whole], self._type)
        if self._type.kind == "i":
            return samples.astype(np.float32) / 32768
        return samples.astype(np.float32)

    def skip(self, payload: bytes) -> None:
        self.decode(payload)

    def encode(self, pcm: np.ndarray) -> bytes:
        if self._type.kind == "i":
            pcm = np.rint(np.clip(pcm, -1, 1) * 32767)
        return pcm.astype(self._type).tobytes()


PCM_TYPES = {"pcm_s16le": "<i2", "pcm_f32le": "<f4"}


def coders(audio: str) -> tuple[SoundReader, SoundWriter]:
    """Reader and writer of one connection: `opus`, `pcm_s16le` or `pcm_f32le`."""
    if audio == "opus":
        return OpusReader(), OpusWriter()
    pcm = Pcm(audio)
    return pcm, pcm
