"""Text tokens to text while they come: valid UTF-8, whole words, times."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .config.parts import LmConfig
from .errors import InputError, clean

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

WORD_MARK = "\u2581"
_LEFT_OUT = str.maketrans("", "", "\t\r")


class Detokenizer:
    """Feeds on one token per frame, gives the text that is complete.

    Byte pieces are held back until they make a character. Padding, control tokens and control characters (which would
    reach a terminal) give nothing.
    """

    def __init__(self, tokenizer: SentencePieceProcessor, cfg: LmConfig | None = None):
        self._tokenizer = tokenizer
        self._size = tokenizer.vocab_size()
        self._silent = {0, 3} if cfg is None else {cfg.padding_token, cfg.end_padding_token}
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Text added by `token`; a word begins with a space."""
        if not 0 <= token < self._size or token in self._silent or self._tokenizer.is_control(token):
            return ""
        piece = self._tokenizer.id_to_piece(token)
        if self._tokenizer.is_byte(token):
            return _shown(self._bytes.decode(bytes([int(piece[3:-1], 16)])))
        # A character cut short by an ordinary piece will never be completed.
        return self.flush() + _shown(piece.replace(WORD_MARK, " "))

    def flush(self) -> str:
        """Whatever is left of an unfinished character, when no more tokens come."""
        return self._bytes.decode(b"", final=True)

    @property
    def pending(self) -> bytes:
        """The bytes of an unfinished character, three at most: what the state of a text is."""
        return self._bytes.getstate()[0]

    @pending.setter
    def pending(self, unfinished: bytes) -> None:
        self._bytes.setstate((unfinished, 0))


def _shown(text: str) -> str:
    """Without control characters but the end of a line."""
    return clean(text.translate(_LEFT_OUT), keep="\n")


def pack_pending(rows: list[bytes]) -> mx.array:
    """Unfinished characters of several texts as `[rows, 4]` uint8: how many bytes, and the bytes."""
    packed = [[len(b), *b, *bytes(3 - len(b))] for b in rows]
    return mx.array(np.array(packed, np.uint8).reshape(-1, 4))


def check_pending(packed: Any, rows: int) -> list[bytes]:
    """The unfinished characters of `rows` texts (of none, where there was no tokenizer) from what `pack_pending` made of them.

    Raises `InputError` for anything else.
    """
    if not isinstance(packed, mx.array) or packed.dtype != mx.uint8 or packed.shape not in ((rows, 4), (0, 4)):
        raise InputError(f"text should be an array [{rows}, 4] uint8.")
    found = []
    for row in np.array(packed):
        count, unfinished = int(row[0]), bytes(row[1 : 1 + int(row[0])].tolist())
        try:
            finished = count > 3 or codecs.getincrementaldecoder("utf-8")().decode(unfinished)
        except UnicodeDecodeError:
            finished = True
        if finished:
            raise InputError(f"text should be the beginnings of characters, found {row.tolist()}.")
        found.append(unfinished)
    return found


@dataclass(frozen=True)
class Word:
    """A spoken word; times in seconds from the start of the output."""

    text: str
    start: float
    end: float


class WordTimer:
    """Groups text into words. A word lasts from the frame of its first piece to the end of the frame of its last."""

    def __init__(self, frame_rate: float):
        self._seconds = 1 / frame_rate
        self._text, self._first, self._last = "", 0, 0

    def feed(self, text: str, frame: int) -> list[Word]:
        """Words completed by the `text` of frame `frame`."""
        done: list[Word] = []
        for i, part in enumerate(text.replace("\n", " ").split(" ")):
            if i:
                done += self.flush()
            if part:
                if not self._text:
                    self._first = frame
                self._text, self._last = self._text + part, frame
        return done

    def flush(self) -> list[Word]:
        """The word under way, if there is one."""
        if not self._text:
            return []
        word = Word(self._text, round(self._first * self._seconds, 6), round((self._last + 1) * self._seconds, 6))
        self._text = ""
        return [word]
