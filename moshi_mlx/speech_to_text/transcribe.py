"""Recordings of any length made into transcripts, several at once (family.md 1.2).

Memory does not grow with their length, apart from one number per frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..arguments import kind
from ..audio.files import AudioReader
from ..defaults import TIMINGS
from ..errors import AudioError, InputError
from ..text import Word
from .listener import Listener
from .recording import Surroundings
from .words import PAD, WordEnd, WordStart, WordStream, offline_words, plain_text, printable, within

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Frames encoded at once.
CHUNK = 16


@dataclass
class Transcript:
    """What was said: `text` as it was written, `words` with times in seconds, `duration` of the recording in seconds.

    `text` also has fragments that belong to no word. `tokens`: the text stream, one token per frame that was heard.
    `prompt_left`: tokens of a text prompt that the model never found in the audio. `error`: why the recording could not be
    read to its end; the rest is what was said before.
    """

    source: str
    text: str
    words: list[Word]
    duration: float
    tokens: list[int] = field(default_factory=list, repr=False)
    prompt_left: int = 0
    error: AudioError | None = None


class FileTranscriber:
    """Transcribes recordings, up to `listener.batch` at once; as one of them ends the next takes its place.

    `timing` is the rule for the times of words, one of `TIMINGS`.
    """

    def __init__(
        self,
        listener: Listener,
        tokenizer: SentencePieceProcessor,
        surroundings: Surroundings,
        timing: str = "offline",
    ):
        if timing not in TIMINGS:
            raise InputError(f"the timing rule should be {' or '.join(TIMINGS)}, found {timing!r}.")
        surroundings.check_window(listener.lm.cfg.transformer.context)
        self._listener, self._tokenizer, self._around, self._timing = listener, tokenizer, surroundings, timing

    @property
    def sample_rate(self) -> int:
        """Samples a second of the readers."""
        return self._around.sample_rate

    def __call__(
        self,
        readers: Iterable[AudioReader],
        on_token: Callable[[int, int], None] | None = None,
        on_frames: Callable[[int], None] | None = None,
    ) -> list[Transcript]:
        """Transcripts of `readers`, in their order. See `each`."""
        found = sorted(self.each(readers, on_token, on_frames), key=lambda item: item[0])
        return [transcript for _, transcript in found]

    def each(
        self,
        readers: Iterable[AudioReader],
        on_token: Callable[[int, int], None] | None = None,
        on_frames: Callable[[int], None] | None = None,
    ) -> Iterator[tuple[int, Transcript]]:
        """The number of a reader, counted from 0, and its transcript, as soon as it is there. A reader is asked for when a row is free.

        `on_token(number, token)` gets every token of a transcript as it comes, `on_frames` how many more frames were heard.
        """
        listener, size, around = self._listener, self._around.frame_size, self._around
        waiting = enumerate(readers)
        rows: list[_Row | None] = [None] * listener.batch
        pcm = np.zeros((listener.batch, CHUNK * size), np.float32)
        while True:
            fresh = []
            for b in range(listener.batch):
                if rows[b] is None and (following := next(waiting, None)) is not None:
                    number, reader = following
                    kind(f"recording {number}", reader, AudioReader, "an AudioReader")
                    rows[b] = _Row(number, reader, around.frames(reader), around.hidden_tokens)
                    listener.join(b)
                    fresh.append(b)
            active = np.array([row is not None for row in rows])
            if not active.any():
                return
            if fresh:
                # The first step's token is that of model time 0, before any frame.
                first = listener.read([listener.start(fresh if listener.own_clocks else None)])
                self._keep(rows, first.tokens, [int(b in fresh) for b in range(listener.batch)], on_token)
            counts = [0 if row is None else row.fill(pcm[b].reshape(CHUNK, size)) for b, row in enumerate(rows)]
            heard = listener.listen(pcm, active if listener.own_clocks else None)
            self._keep(rows, heard.tokens, counts, on_token)
            if on_frames:
                on_frames(max(counts))
            for b, row in enumerate(rows):
                if row is not None and row.ended:
                    rows[b] = None
                    yield row.number, self._transcript(row, listener.prompt.left[b] if listener.prompt else 0)

    def _keep(self, rows: Sequence[_Row | None], tokens: np.ndarray, counts: list[int], on_token) -> None:
        for b, (row, count) in enumerate(zip(rows, counts, strict=True)):
            for token in tokens[:count, b].tolist():
                assert row is not None
                if row.add(token) and on_token:
                    on_token(row.number, token)

    def _transcript(self, row: _Row, prompt_left: int) -> Transcript:
        around, tokenizer = self._around, self._tokenizer
        duration = row.reader.samples / around.sample_rate
        if self._timing == "offline":
            words = offline_words(row.tokens, tokenizer, around.frame_rate, around.lead + around.delay)
        else:
            words = streaming_words(row.tokens, tokenizer, around.frame_rate, around.delay, around.lead)
        # The silence that follows the recording is not part of it.
        words = [Word(text, w.start, w.end) for w in words if (text := printable(w.text).strip())]
        words = within(words, duration, 1 / around.frame_rate)
        text = printable(plain_text(row.tokens, tokenizer)).strip()
        return Transcript(row.reader.name, text, words, duration, row.tokens, prompt_left, row.error)


@dataclass
class _Row:
    """One recording on its way, the `number`-th. Its first `hidden` tokens count as padding."""

    number: int
    reader: AudioReader
    frames: Iterator[np.ndarray]
    hidden: int
    tokens: list[int] = field(default_factory=list)
    ended: bool = False
    error: AudioError | None = None

    def fill(self, chunk: np.ndarray) -> int:
        """Put the next frames into `chunk [F, size]`, silence after the last; returns how many there are."""
        chunk[:] = 0
        for i in range(len(chunk)):
            try:
                frame = next(self.frames, None)
            except AudioError as e:
                frame, self.error = None, e
            if frame is None:
                self.ended = True
                return i
            chunk[i] = frame
        return len(chunk)

    def add(self, token: int) -> bool:
        """Append a token; false if it is hidden."""
        shown = len(self.tokens) >= self.hidden
        self.tokens.append(token if shown else PAD)
        return shown


def streaming_words(
    tokens: Iterable[int], tokenizer: SentencePieceProcessor, frame_rate: float, delay: float, offset: float
) -> list[Word]:
    """Words of a whole stream by the streaming rule, in seconds; `offset` is what was heard before the recording."""
    stream = WordStream(tokenizer, frame_rate, delay)
    events = [e for token in tokens for e in stream.feed(token)]
    words: list[Word] = []
    shown = False
    for event in [*events, *stream.flush()]:
        time = max(0.0, event.frame / frame_rate - offset)
        if isinstance(event, WordStart):
            # The end of one that says nothing is not the end of the word before it.
            shown = bool(event.text)
            if shown:
                words.append(Word(event.text, time, math.inf))
        elif isinstance(event, WordEnd) and shown:
            words[-1] = Word(words[-1].text, words[-1].start, time)
    return words
