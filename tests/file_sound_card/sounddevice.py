"""A sound card of two files, in place of PortAudio's: plays `$MICROPHONE` once at the pace of speech, writes `$LOUDSPEAKER`."""

from __future__ import annotations

import os
import threading
import time

import numpy as np
import soundfile


class _Stream:
    def __init__(self, samplerate: float, channels: int, blocksize: int, callback, dtype: str = "float32"):
        assert dtype == "float32"
        self._rate, self._shape, self._callback = samplerate, (blocksize, channels), callback
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._block()
            due += self._shape[0] / self._rate
            time.sleep(max(0.0, due - time.monotonic()))


class InputStream(_Stream):
    def __init__(self, **options):
        super().__init__(**options)
        self._pcm, rate = soundfile.read(os.environ["MICROPHONE"], dtype="float32")
        assert rate == self._rate
        self._at = 0

    def _block(self) -> None:
        block = np.zeros(self._shape, np.float32)
        piece = self._pcm[self._at : self._at + len(block)]
        block[: len(piece), 0] = piece
        self._at += len(block)
        self._callback(block, len(block), None, None)


class OutputStream(_Stream):
    def __init__(self, **options):
        super().__init__(**options)
        self._file = soundfile.SoundFile(os.environ["LOUDSPEAKER"], "w", int(self._rate), self._shape[1], format="WAV")

    def _block(self) -> None:
        block = np.zeros(self._shape, np.float32)
        self._callback(block, len(block), None, None)
        self._file.write(block)
        self._file.flush()
