"""A wav file that is whole at every moment: what has been flushed is readable however the program ends.

16-bit PCM. Sound is appended first, then the header's sizes are renewed; a file that outgrows 4 GB becomes an RF64 in place
(EBU Tech 3306), for which the header keeps room.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np

HEADER = 80
RIFF_LIMIT = 2**32 - 1


class GrowingWav:
    """Raises `OSError` when the disk refuses; what was flushed before stays readable."""

    limit = RIFF_LIMIT

    def __init__(self, path: Path, channels: int, sample_rate: int):
        self.path, self.channels, self.sample_rate = path, channels, sample_rate
        self.samples = 0  # per channel, in the file
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            self._write_at(self._header(), 0)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def append(self, pcm: np.ndarray) -> None:
        """`pcm [n]` or `[n, channels]`, clipped to -1..1."""
        data = np.clip(np.rint(pcm * 32767), -32767, 32767).astype("<i2")
        start = HEADER + self.samples * 2 * self.channels
        self._write_at(data.tobytes(), start)
        self.samples += len(data)
        self._write_at(self._header(), 0)

    def sync(self) -> None:
        """Past the system's caches, so that a power cut costs no more than what came since."""
        os.fsync(self._file)

    def close(self) -> None:
        # A write that failed half-way has left bytes the header does not know.
        os.ftruncate(self._file, HEADER + self.samples * 2 * self.channels)
        os.close(self._file)

    def _write_at(self, data: bytes, position: int) -> None:
        view = memoryview(data)
        while view:
            n = os.pwrite(self._file, view, position)
            view, position = view[n:], position + n

    def _header(self) -> bytes:
        width = 2 * self.channels
        data = self.samples * width
        large = HEADER + data - 8 > self.limit
        riff, size, data_size = (b"RF64", 2**32 - 1, 2**32 - 1) if large else (b"RIFF", HEADER + data - 8, data)
        # The 28 bytes for 64-bit sizes are padding until they are needed.
        sizes = struct.pack("<QQQI", HEADER + data - 8, data, self.samples, 0)
        reserved = struct.pack("<4sI", b"ds64" if large else b"JUNK", 28) + (sizes if large else bytes(28))
        layout = struct.pack("<HHIIHH", 1, self.channels, self.sample_rate, self.sample_rate * width, width, 16)
        return b"".join(
            (
                struct.pack("<4sI4s", riff, size, b"WAVE"),
                reserved,
                struct.pack("<4sI", b"fmt ", 16),
                layout,
                struct.pack("<4sI", b"data", data_size),
            )
        )
