"""Words with times from the text stream (family.md 1.3).

The stream holds one token per frame: PAD while nothing begins, BOUNDARY one step before the first piece of a word, then
the pieces. There are two rules. `offline_words` sees the whole stream; `WordStream` speaks as soon as it can, and its times
may differ from the other's by up to 0.2 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..errors import clean
from ..text import Word

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

BOUNDARY, EOS, PAD = 0, 2, 3
# How long the last word lasts at most when nothing ends it: one second.
LAST_WORD_FRAMES = 12
# No word takes longer to say than the larger of: a second, and this for each of its letters.
SECONDS_PER_LETTER = 0.1


def plain_text(tokens: Sequence[int], tokenizer: SentencePieceProcessor) -> str:
    """The text of a token stream as the tokenizer spells it, words and fragments outside of words alike."""
    return tokenizer.decode([t for t in tokens if PAD < t < tokenizer.vocab_size()])


def printable(text: str) -> str:
    """`text` on one line and without control characters, which would reach a terminal or break a subtitle."""
    return clean(text)


def within(words: Sequence[Word], duration: float, frame: float) -> list[Word]:
    """`words` one after the other in a recording of `duration` seconds: each lasts a `frame` at least and ends where the next begins
    at the latest. Where there are more words than frames, the first ones are shorter.
    """
    starts: list[float] = []
    for word in words:
        starts.append(max(word.start, starts[-1] + frame) if starts else word.start)
    found: list[Word] = []
    limit = duration
    for word, start in zip(reversed(words), reversed(starts), strict=True):
        end = max(0.0, min(max(word.end, start + frame), limit))
        limit = max(0.0, min(start, end - frame))
        found.append(Word(word.text, limit, end))
    return found[::-1]


def spoken(word: Word) -> Word:
    """`word` with an end that it can have: both rules let a word last until the next one begins, however long the pause between."""
    return replace(word, end=min(word.end, word.start + max(1.0, SECONDS_PER_LETTER * len(word.text))))


def offline_words(
    tokens: Sequence[int], tokenizer: SentencePieceProcessor, frame_rate: float, offset: float
) -> list[Word]:
    """Words of a whole stream. Position p of `tokens` is heard at p / `frame_rate` - `offset` seconds, never below 0.

    Pieces between two boundaries are one word; where they make several, a boundary is missing, and each but the last is given as
    many frames as it has pieces. What precedes the first boundary is no word.
    """
    boundaries = [p for p, t in enumerate(tokens) if t == BOUNDARY]
    words: list[Word] = []
    for i, boundary in enumerate(boundaries):
        start = boundary + 1
        if i + 1 < len(boundaries):
            last = end = boundaries[i + 1]
        else:
            end = _end_of_stream(tokens, start)
            # An end that nothing marks is no later than a second after the beginning.
            last = end if end < len(tokens) else min(end, start + LAST_WORD_FRAMES)
        text = plain_text(tokens[start:end], tokenizer)
        parts = text.split()
        if len(parts) == 1:
            parts = [text]
        for n, part in enumerate(parts):
            stop = start + len(tokenizer.encode(part)) if n < len(parts) - 1 else max(last, start)
            words.append(Word(part, *(max(0.0, p / frame_rate - offset) for p in (start, stop))))
            start = stop
    return words


def _end_of_stream(tokens: Sequence[int], start: int) -> int:
    """Position of the first end of sequence from `start` on, else the length."""
    return next((p for p in range(start, len(tokens)) if tokens[p] == EOS), len(tokens))


@dataclass(frozen=True)
class WordStart:
    """A word, reported at the first pad after it. `frame` is where it began in the audio that was fed."""

    text: str
    tokens: tuple[int, ...]
    frame: int


@dataclass(frozen=True)
class WordEnd:
    """The word reported last ended at `frame` of the audio that was fed."""

    frame: int


class WordStream:
    """The streaming rule. `delay` in seconds is how far the text lags behind the audio.

    Where a boundary is missing two words come out as one, with a space in between.
    """

    def __init__(self, tokenizer: SentencePieceProcessor, frame_rate: float, delay: float):
        self._tokenizer = tokenizer
        self.delay_steps = math.floor(delay * frame_rate)
        self._step = 0
        self._pieces: list[int] = []
        self._is_open = False
        self._boundary = 0

    def feed(self, token: int) -> list[WordStart | WordEnd]:
        """What the token of the next step completes. The first step is the model's first, before any audio."""
        self._step += 1
        if self._step < self.delay_steps:
            return []
        if token not in (BOUNDARY, PAD):
            self._pieces.append(token)
            return []
        events: list[WordStart | WordEnd] = list(self.flush())
        if token == BOUNDARY:
            here = self._step - self.delay_steps
            if self._is_open:
                self._is_open = False
                events.append(WordEnd(here))
            self._boundary = here
        return events

    def flush(self) -> list[WordStart]:
        """The word under way, if there is one, when no more tokens come."""
        if not self._pieces:
            return []
        word = WordStart(plain_text(self._pieces, self._tokenizer), tuple(self._pieces), self._boundary)
        self._pieces, self._is_open = [], True
        return [word]
