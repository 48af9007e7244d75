"""Recordings answered in the rows of one batch: each is a conversation, and as it ends the next one takes its place."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..audio.files import AudioReader, AudioWriter
from ..defaults import TRANSLATION_SECONDS
from ..engine.kind import Outcome
from ..errors import AudioError
from ..text import Word, WordTimer
from . import hibiki
from .answer import FRAME_RATE, Answer
from .conversations import Conversations, Talk
from .hibiki import Ending
from .reply import Frame
from .session import Session


@dataclass
class Job:
    """One conversation: the `number`-th input, and what comes of it."""

    number: int
    source: str
    reader: AudioReader
    writer: AudioWriter | None
    text_file: Path | None = None
    text: list[str] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    samples: int = 0
    length: int | None = None
    heard: bool = False
    # Of a translation: how it ends; below, what was said since its last word.
    ending: Ending | None = None
    # Of a dialogue without --tail: when its answer is over.
    answer: Answer | None = None
    error: AudioError | None = None
    held: list[np.ndarray] = field(default_factory=list)
    timer: WordTimer = field(default_factory=lambda: WordTimer(FRAME_RATE))

    @property
    def reply(self) -> str:
        """The text of the reply."""
        return "".join(self.text).strip()

    def release(self) -> None:
        """Write the frames held back."""
        for pcm in self.held:
            self.samples += len(pcm)
            if self.writer is not None:
                self.writer.write(pcm)
        self.held.clear()

    def close(self) -> None:
        self.reader.close()
        if self.writer is not None:
            self.writer.discard()


class OneTalk:
    """A session as the only row of a batch, at a session's speed."""

    rows = 1

    def __init__(self, session: Session):
        self._session, self.checkpoint = session, session.checkpoint
        self._left_out = 0

    def join(self, row: int, talk: Talk) -> Iterator[None]:
        """The session was made for the talk and has not begun."""
        self._left_out = hibiki.lead_in(self._session)
        yield

    def leave(self, row: int) -> None:
        pass

    def step(self, given: Mapping[int, tuple[np.ndarray, bool]]) -> dict[int, Outcome]:
        pcm, ended = given[0]
        frame = self._session.step(pcm, ended)
        return {0: Outcome([replace(frame, index=frame.index - self._left_out)])}


class Recordings:
    """How the conversations of some jobs go: `talk(job)` says how each one is held.

    `tail`: seconds of silence after each recording; None: until its answer is over. `stereo`: the user is kept on the left. `say` gets
    the reply's text as it comes, where there is one job only.
    """

    def __init__(
        self,
        talks: Conversations | OneTalk,
        talk: Callable[[Job], Talk],
        tail: float | None = None,
        stereo: bool = False,
        say: Callable[[str], None] | None = None,
    ):
        self._talks, self._talk, self._tail, self._stereo, self._say = talks, talk, tail, stereo, say
        mimi = talks.checkpoint.mimi
        assert mimi is not None
        self._frame_rate, self._frame_size = mimi.frame_rate, mimi.frame_size

    def each(self, jobs: list[Job], stepped: Callable[[float, int], None]) -> Iterator[Job]:
        """Hold all conversations, as many at once as there are rows; each job is yielded when it is over.

        `stepped(seconds, conversations)` hears of every step: how long it took and how many took part.
        """
        for job in jobs:
            self._prepare(job)
        talks, waiting = self._talks, iter(jobs)
        frames_of = conversation_frames if len(jobs) == 1 else frames_of_many
        rows: dict[int, tuple[Job, Iterator[tuple[np.ndarray, bool]]]] = {}
        while True:
            for row in set(range(talks.rows)) - set(rows):
                for job in _first(waiting):
                    for _ in talks.join(row, self._talk(job)):
                        pass
                    rows[row] = job, frames_of(job, self._frame_size, self._tail or 0.0)
            if not rows:
                return
            given = {row: g for row, (_, frames) in rows.items() if (g := next(frames, None)) is not None}
            for row in rows.keys() - given.keys():
                talks.leave(row)
                job, _ = rows.pop(row)
                job.words += job.timer.flush()
                yield job
            if not given:
                continue
            start = time.perf_counter()
            outcomes = talks.step(given)
            stepped(time.perf_counter() - start, len(given))
            for row, (pcm, _) in given.items():
                self._keep(rows[row][0], pcm, outcomes[row].items[0])

    def _prepare(self, job: Job) -> None:
        """How the conversation ends."""
        checkpoint = self._talks.checkpoint
        if hibiki.is_translation(checkpoint):
            seconds = TRANSLATION_SECONDS if self._tail is None else self._tail
            job.ending = Ending(round(seconds * self._frame_rate), without_last=checkpoint.lm.cfg.is_hibiki_zero)
        elif self._tail is None:
            job.answer = Answer(self._frame_rate)

    def _keep(self, job: Job, heard: np.ndarray, frame: Frame) -> None:
        """Store one frame of reply."""
        pcm = frame.pcm if job.length is None else frame.pcm[: job.length - job.samples]
        heard = heard[: len(pcm)]
        job.words += job.timer.feed(frame.text, frame.index)
        if frame.text:
            if self._say is not None:
                self._say(frame.text if job.text else frame.text.lstrip())
            job.text.append(frame.text)
        if job.answer is not None:
            job.answer.see(frame.text, frame.pcm)
        job.held.append(np.stack([heard, pcm], axis=1) if self._stereo else pcm)
        if job.ending is None or job.ending.wants(frame.text_token, job.held):
            job.release()


def _first(jobs: Iterator[Job]) -> Iterable[Job]:
    """The next job, if there is one."""
    job = next(jobs, None)
    return [] if job is None else [job]


def frames_of_many(job: Job, size: int, tail: float) -> Iterator[tuple[np.ndarray, bool]]:
    """As `conversation_frames`; one recording that cannot be read to its end does not stop the others."""
    try:
        yield from conversation_frames(job, size, tail)
    except AudioError as e:
        job.error = e


def conversation_frames(job: Job, size: int, tail: float) -> Iterator[tuple[np.ndarray, bool]]:
    """The input's frames, then what its end needs: `tail` seconds of silence, silence while the answer goes on, or what a translation
    ends with; true marks its source's end.
    """
    # One frame behind the reader: the last one is known to be last when it is stepped.
    pending: np.ndarray | None = None
    for pcm in job.reader.frames(size):
        job.heard = job.heard or bool(pcm.any())
        if pending is not None:
            yield pending, False
        pending = pcm
    if pending is None or not job.heard:
        raise AudioError(
            f"{job.reader.name} holds nothing but digital silence. Check that the right input was recorded."
        )
    if job.ending is not None:
        yield pending, False
        yield from job.ending.frames(size)
        return
    if job.answer is not None:
        yield pending, False
        for silence in job.answer.frames(size):
            yield silence, False
        return
    # The reply lasts as long as input and tail, to the sample.
    job.length = job.reader.samples + round(tail * job.reader.sample_rate)
    yield pending, False
    for _ in range(-(-job.length // size) - -(-job.reader.samples // size)):
        yield np.zeros(size, np.float32), False
