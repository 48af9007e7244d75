"""Headers of wav files with 16-bit samples."""

from __future__ import annotations

import struct

import numpy as np

RIFF_LIMIT = 2**32 - 1
# What stands for a length nobody knows yet.
UNKNOWN = 2**32 - 1
GROWING_HEADER, STREAM_HEADER = 80, 44


def to_int16(pcm: np.ndarray) -> np.ndarray:
    """Samples -1..1 (clipped) as little-endian 16-bit integers: the very ones that libsndfile writes."""
    return np.clip(np.floor(pcm * 32768), -32768, 32767).astype("<i2")


def stream_header(channels: int, sample_rate: int, samples: int | None = None) -> bytes:
    """The usual 44 bytes. `samples` per channel; None, or more than fit: no end is known, as programs that write to pipes say."""
    width = 2 * channels
    data = None if samples is None or samples * width > RIFF_LIMIT - STREAM_HEADER else samples * width
    size = UNKNOWN if data is None else STREAM_HEADER - 8 + data
    return b"".join(
        (
            struct.pack("<4sI4s", b"RIFF", size, b"WAVE"),
            _format(channels, sample_rate),
            struct.pack("<4sI", b"data", UNKNOWN if data is None else data),
        )
    )


def growing_header(channels: int, sample_rate: int, samples: int, limit: int = RIFF_LIMIT) -> bytes:
    """80 bytes that keep room for 64-bit sizes: past `limit` bytes the file becomes an RF64 in place (EBU Tech 3306)."""
    data = samples * 2 * channels
    large = GROWING_HEADER + data - 8 > limit
    riff, size, data_size = (
        (b"RF64", UNKNOWN, UNKNOWN) if large else (b"RIFF", GROWING_HEADER + data - 8, data)
    )  # fmt: skip
    # The 28 bytes for 64-bit sizes are padding until they are needed.
    sizes = struct.pack("<QQQI", GROWING_HEADER + data - 8, data, samples, 0)
    return b"".join(
        (
            struct.pack("<4sI4s", riff, size, b"WAVE"),
            struct.pack("<4sI", b"ds64" if large else b"JUNK", 28) + (sizes if large else bytes(28)),
            _format(channels, sample_rate),
            struct.pack("<4sI", b"data", data_size),
        )
    )


def _format(channels: int, sample_rate: int) -> bytes:
    width = 2 * channels
    return struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, sample_rate, sample_rate * width, width, 16)
