"""`--record DIR`: every talk in a folder of its own, exactly as the model heard and said it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from ..engine.kind import Kind, Outcome
from ..engine.streams import Inbox
from ..errors import AudioError, InputError
from ..live.recording import Recorder
from ..session.reply import Frame
from ..text import WordTimer
from . import log


class Recorded:
    """Talks of `kind`, recorded below `folder`. A `Kind` itself, on the same thread, which never waits for a disk."""

    def __init__(self, kind: Kind, folder: Path):
        self.kind, self.rows, self.bounds = kind, kind.rows, kind.bounds
        self._folder = folder
        self._talks: dict[int, tuple[Recorder, WordTimer]] = {}
        self._ending: list[threading.Thread] = []

    def join(self, row: int, options: Any) -> Iterator[None]:
        yield from self.kind.join(row, options)
        try:
            recorder = Recorder(self._new_folder(), self.bounds.sample_rate)
        except AudioError as e:
            # The user was told that there is a recording; a talk without one is still a talk.
            log.event("recording.failed", reason=str(e))
            return
        self._talks[row] = recorder, WordTimer(self.bounds.sample_rate / self.bounds.frame_size)

    def leave(self, row: int) -> None:
        self.kind.leave(row)
        self._end(row)

    def close(self) -> None:
        """End the recordings that are left when the server stops, and wait for the disk. Any thread, once `step` is over."""
        for row in list(self._talks):
            self._end(row)
        for thread in self._ending:
            thread.join()

    def _end(self, row: int) -> None:
        if row not in self._talks:
            return
        recorder, timer = self._talks.pop(row)
        recorder.note("end", timer.flush())
        self._ending = [t for t in self._ending if t.is_alive()]
        self._ending.append(threading.Thread(target=_finish, args=(recorder,), name="recording"))
        self._ending[-1].start()

    def ready(self, row: int, inbox: Inbox) -> bool:
        return self.kind.ready(row, inbox)

    def collect(self, row: int, inbox: Inbox) -> Any:
        return self.kind.collect(row, inbox)

    def step(self, given: dict[int, Any]) -> dict[int, Outcome]:
        outcomes = self.kind.step(given)
        for row, outcome in outcomes.items():
            if row not in self._talks:
                continue
            recorder, timer = self._talks[row]
            for frame in outcome.items:
                if isinstance(frame, Frame):
                    recorder.add(given[row][0], frame.pcm, timer.feed(frame.text, recorder.frames))
        return outcomes

    def _new_folder(self) -> Path:
        """Named after the moment; talks that begin in the same second are counted."""
        moment = datetime.now().strftime("%Y-%m-%d %H.%M.%S")
        for number in range(1, 1000):
            folder = self._folder / (moment if number == 1 else f"{moment} ({number})")
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as e:
                raise AudioError(f"{folder} cannot be made: {e.strerror or e}.") from None
            return folder
        raise AudioError(f"{self._folder} has a thousand recordings of this second.")


def _finish(recorder: Recorder) -> None:
    recorder.close()
    log.event("recording.ended", folder=recorder.folder, frames=recorder.frames, missed=recorder.missed or None)


def check(folder: str) -> Path:
    """The folder of `--record`, made where it is missing. Raises `InputError`."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{path} is a file; --record expects a folder.") from None
    except OSError as e:
        raise InputError(f"{path} cannot be made: {e.strerror or e}.") from None
    return path
