"""Files in place of the microphone or the loudspeaker: the same loop without sound devices."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..audio.capture import MAX_LAG, Capture
from ..audio.files import AudioReader, AudioWriter
from ..errors import AudioError

BLOCK_SECONDS = 0.01


def frames(reader: AudioReader, size: int, tail: Callable[[], float]) -> Iterator[np.ndarray]:
    """A recording's frames, then `tail()` seconds of silence."""
    yield from reader.frames(size)
    for _ in range(round(tail() * reader.sample_rate / size)):
        yield np.zeros(size, np.float32)


class FileSource:
    """A recording as fast as the model takes it (`--fast`). `tail`, seconds of silence after it, may be changed until then."""

    paced = False
    silent = False
    dropped = invalid = errors = 0
    lag = delay = 0.0

    def __init__(self, reader: AudioReader, frame_size: int = 1920, tail: float = 0.0):
        self.tail = tail
        self._reader, self._frames = reader, frames(reader, frame_size, lambda: self.tail)
        self.ended = False
        self.completed = 0.0

    def open(self) -> None:
        pass

    def started(self, timeout: float) -> bool:
        return True

    def read(self, timeout: float) -> np.ndarray | None:
        frame = next(self._frames, None)
        self.ended = frame is None
        self.completed = time.perf_counter()
        return frame

    def problem(self) -> str | None:
        return None

    def pause(self, paused: bool) -> None:
        pass

    def suspend(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        self._reader.close()


class SteadyFileSource(FileSource):
    """A recording at the pace of speech for a reply that is a file too: nobody waits, so whoever reads late loses nothing."""

    paced = True

    def __init__(self, reader: AudioReader, frame_size: int = 1920, tail: float = 0.0):
        super().__init__(reader, frame_size, tail)
        self._frame_seconds = frame_size / reader.sample_rate
        self._woken = threading.Event()
        self._due: float | None = None

    def read(self, timeout: float) -> np.ndarray | None:
        now = time.perf_counter()
        if self._due is None:
            self._due = now + self._frame_seconds
        # A frame is there once its last sample has been spoken.
        wait = self._due - now
        if wait > 0 and (self._woken.wait(min(wait, timeout)) or wait > timeout):
            self._woken.clear()
            return None
        self._due += self._frame_seconds
        return super().read(timeout)

    def pause(self, paused: bool) -> None:
        self._due = None

    def suspend(self) -> None:
        self._due = None

    def wake(self) -> None:
        self._woken.set()


class PacedFileSource:
    """A recording at the pace of speech, delivered by a thread of its own as a microphone would: late readers lose sound."""

    paced = True
    silent = False
    errors = 0
    delay = 0.0

    def __init__(self, reader: AudioReader, frame_size: int = 1920, tail: float = 0.0, max_lag: float = MAX_LAG):
        self.tail = tail
        self._reader, self._frames = reader, frames(reader, frame_size, lambda: self.tail)
        self.capture = Capture(reader.sample_rate, frame_size, reader.sample_rate, max_lag)
        self._done, self._closing, self._going = threading.Event(), threading.Event(), threading.Event()
        self._error: AudioError | None = None
        self._thread = threading.Thread(target=self._run, name="file", daemon=True)

    def open(self) -> None:
        self._going.set()
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        try:
            block = round(BLOCK_SECONDS * self.capture.sample_rate)
            begun, sent = time.perf_counter(), 0
            for frame in self._frames:
                for at in range(0, len(frame), block):
                    part = frame[at : at + block]
                    due = begun + (sent + len(part)) / self.capture.sample_rate
                    if not self._going.is_set():
                        stopped = time.perf_counter()
                        self._going.wait()
                        begun += time.perf_counter() - stopped
                        due = begun + (sent + len(part)) / self.capture.sample_rate
                    # A block is there once its last sample has been spoken.
                    if self._closing.wait(max(0.0, due - time.perf_counter())):
                        return
                    self.capture.feed(part, due)
                    sent += len(part)
        except AudioError as e:
            self._error = e
        finally:
            self._done.set()
            self.capture.wake()

    def started(self, timeout: float) -> bool:
        return True

    def read(self, timeout: float) -> np.ndarray | None:
        over = self._done.is_set()
        frame = self.capture.read(0.0 if over else timeout)
        if frame is None and self._error is not None:
            raise self._error
        return frame

    @property
    def ended(self) -> bool:
        return self._done.is_set() and self.capture.waiting < self.capture.frame_size / self.capture.sample_rate

    @property
    def completed(self) -> float:
        return self.capture.completed

    @property
    def lag(self) -> float:
        return self.capture.waiting

    @property
    def dropped(self) -> int:
        return self.capture.dropped

    @property
    def invalid(self) -> int:
        return self.capture.invalid

    def problem(self) -> str | None:
        return None

    def pause(self, paused: bool) -> None:
        if paused:
            self._going.clear()
        else:
            self._going.set()

    def suspend(self) -> None:
        self._going.clear()

    def wake(self) -> None:
        self.capture.wake()

    def close(self) -> None:
        self._closing.set()
        self._going.set()
        if self._thread.is_alive():
            self._thread.join(5)
        self._reader.close()


class FileSink:
    """The reply's frames into a file, in order and without gaps."""

    paced = False
    delay = buffered = hold = cut = 0.0
    underruns = errors = 0
    playback = None

    def __init__(self, path: str | Path, sample_rate: int = 24000):
        self._writer = AudioWriter(path, 1, sample_rate)

    def open(self) -> None:
        pass

    def started(self, timeout: float) -> bool:
        return True

    def write(self, pcm: np.ndarray, captured: float | None = None) -> None:
        self._writer.write(pcm)

    def problem(self) -> str | None:
        return None

    def stop(self) -> None:
        pass

    def suspend(self) -> None:
        pass

    def finish(self) -> None:
        """Keep the file, also after an interruption."""
        self._writer.commit()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._writer.discard()


class NoSink:
    """A reply nobody hears: text only."""

    paced = False
    delay = buffered = hold = cut = 0.0
    underruns = errors = 0
    playback = None

    def open(self) -> None:
        pass

    def started(self, timeout: float) -> bool:
        return True

    def write(self, pcm: np.ndarray, captured: float | None = None) -> None:
        pass

    def problem(self) -> str | None:
        return None

    def stop(self) -> None:
        pass

    def suspend(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass
