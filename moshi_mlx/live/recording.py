"""`--record DIR`: both sides as wav files and the words with their times, written while the talk goes on.

    user.wav         what the model heard, after echo cancelling and muting
    moshi.wav        what it said
    stereo.wav       the user left, the reply right
    transcript.jsonl one line per word: {"start": seconds, "end": seconds, "text": ...}; restarts and interruptions too

The three sounds have the same length: the frames of the talk, without its pauses. A disk that is full or slow never stops
a talk in real time.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..errors import OutputError
from ..output import check_new_folder, make_folder, open_growing, reason
from ..text import Word
from .wav import GrowingWav

SOUNDS = {"user.wav": 1, "moshi.wav": 1, "stereo.wav": 2}
TRANSCRIPT = "transcript.jsonl"
# What may wait for a slow disk: 10 s. Frames beyond it are silence in the files.
WAITING_FRAMES = 125
FLUSH_FRAMES = 6


class Recorder:
    """`add`, `note` and `close` belong to the loop's thread; the disk is written by a thread of the recorder."""

    def __init__(
        self,
        folder: str | Path,
        sample_rate: int = 24000,
        on_problem: Callable[[str], None] | None = None,
        patient: bool = False,
    ):
        """Raises `OutputError` if the folder cannot be written or is not empty. `on_problem` may be set later.

        `patient`: wait for a slow disk instead of leaving frames out, for talks faster than real time.
        """
        self.folder, self.sample_rate, self._patient = Path(folder), sample_rate, patient
        self.on_problem = on_problem
        self.frames = self.missed = 0
        self.broken: str | None = None
        self._sounds: dict[str, GrowingWav] = {}
        check_new_folder(self.folder)
        try:
            make_folder(self.folder)
            for name, channels in SOUNDS.items():
                self._sounds[name] = GrowingWav(self.folder / name, channels, sample_rate)
            self._text = open_growing(self.folder / TRANSCRIPT)
        except OSError as e:
            for sound in self._sounds.values():
                sound.close()
                sound.path.unlink(missing_ok=True)
            raise OutputError(f"a recording cannot be written to {self.folder}: {reason(e)}.") from None
        self._queue: queue.Queue = queue.Queue(maxsize=WAITING_FRAMES)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    # The loop's thread ------------------------------------------------------------------------------------------------

    def outcome(self) -> str:
        """What has become of the recording, in a sentence."""
        if self.broken is not None:
            return self.broken
        late = f"; {self.missed} frames came too fast for the disk and are silent" if self.missed else ""
        return f"recorded in {self.folder}{late}"

    @property
    def seconds(self) -> float:
        """Length of the recording so far: the times of the transcript count from its beginning."""
        return self.frames * 0.08

    def add(self, heard: np.ndarray, said: np.ndarray, words: Sequence[Word] = ()) -> None:
        """The next frame of both sides, float32 `[n]` each, and words completed by it."""
        lines = "".join(_line(start=w.start, end=w.end, text=w.text) for w in words)
        self._put(self.frames, np.stack([heard, said], axis=1), lines)
        self.frames += 1

    def note(self, event: str, words: Sequence[Word] = ()) -> None:
        """Something that happened now, as a line of the transcript, after words completed before it."""
        lines = "".join(_line(start=w.start, end=w.end, text=w.text) for w in words)
        self._put(self.frames, None, lines + _line(start=round(self.seconds, 3), event=event))

    def close(self) -> None:
        """Write what waits and finish the files."""
        self._closing.set()
        self._put(self.frames, None, "")
        self._thread.join(30)

    def _put(self, index: int, pcm: np.ndarray | None, lines: str) -> None:
        try:
            self._queue.put((index, pcm, lines), block=self._patient)
        except queue.Full:
            self.missed += pcm is not None

    # The recorder's thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        done = 0
        try:
            while True:
                batch = [self._queue.get()]
                # The talk waits for nobody: gather half a second, then write at once.
                while len(batch) < FLUSH_FRAMES and not self._closing.is_set():
                    with contextlib.suppress(queue.Empty):
                        batch.append(self._queue.get(timeout=0.5))
                        continue
                    break
                done = self._write(batch, done)
                if self._closing.is_set() and self._queue.empty():
                    break
        except OSError as e:
            self.broken = f"the recording in {self.folder} ends here: {reason(e)}."
            if self.on_problem is not None:
                self.on_problem(self.broken)
            self._swallow()
        finally:
            for sound in self._sounds.values():
                with contextlib.suppress(OSError):
                    sound.close()
            with contextlib.suppress(OSError):
                os.close(self._text)

    def _write(self, batch: list, done: int) -> int:
        parts = []
        for index, pcm, _ in batch:
            if pcm is None:
                continue
            if index > done:
                parts.append(np.zeros(((index - done) * len(pcm), 2), np.float32))
            parts.append(pcm)
            done = index + 1
        if parts:
            both = np.concatenate(parts)
            for name, pcm in (("user.wav", both[:, 0]), ("moshi.wav", both[:, 1]), ("stereo.wav", both)):
                self._sounds[name].append(pcm)
        lines = "".join(text for _, _, text in batch).encode()
        while lines:
            lines = lines[os.write(self._text, lines) :]
        if done % 12 < len(batch):
            for sound in self._sounds.values():
                sound.sync()
        return done

    def _swallow(self) -> None:
        """After a failure the loop goes on adding frames, which go nowhere."""
        while not (self._closing.is_set() and self._queue.empty()):
            self._queue.get()


def _line(**fields) -> str:
    return json.dumps(fields, ensure_ascii=False) + "\n"
