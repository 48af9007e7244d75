"""A wav file that is whole at every moment: what has been flushed is readable however the program ends.

16-bit PCM. Sound is appended first, then the header's sizes are renewed; a file that outgrows 4 GB becomes an RF64 in place.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..audio.wav import GROWING_HEADER, RIFF_LIMIT, growing_header, to_int16
from ..output import open_growing


class GrowingWav:
    """Raises `OSError` when the disk refuses; what was flushed before stays readable."""

    limit = RIFF_LIMIT

    def __init__(self, path: Path, channels: int, sample_rate: int):
        self.path, self.channels, self.sample_rate = path, channels, sample_rate
        self.samples = 0  # per channel, in the file
        self._file = open_growing(path)
        try:
            self._write_at(self._header(), 0)
        except OSError:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise

    def append(self, pcm: np.ndarray) -> None:
        """`pcm [n]` or `[n, channels]`, clipped to -1..1."""
        data = to_int16(pcm)
        self._write_at(data.tobytes(), GROWING_HEADER + self.samples * 2 * self.channels)
        self.samples += len(data)
        self._write_at(self._header(), 0)

    def sync(self) -> None:
        """Past the system's caches, so that a power cut costs no more than what came since."""
        os.fsync(self._file)

    def close(self) -> None:
        # A write that failed half-way has left bytes the header does not know.
        os.ftruncate(self._file, GROWING_HEADER + self.samples * 2 * self.channels)
        os.close(self._file)

    def _write_at(self, data: bytes, position: int) -> None:
        view = memoryview(data)
        while view:
            n = os.pwrite(self._file, view, position)
            view, position = view[n:], position + n

    def _header(self) -> bytes:
        return growing_header(self.channels, self.sample_rate, self.samples, self.limit)
