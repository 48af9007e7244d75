"""Text as it comes: from a file, an argument or a pipe, into a speech that has begun."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError
from .checks import Speakable
from .speech import Speech

_PIECE = 4096
_READ_BYTES = 65536


def read_text(path: Path) -> str:
    """A UTF-8 text file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder; expected a text file.") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text.") from None
    except OSError as e:
        raise InputError(f"{path} cannot be read: {e.strerror or e}.") from None


def pieces_of(text: str) -> Iterator[str]:
    """A long text bit by bit, so that sound begins before all of it was taken apart."""
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def stdin_pieces() -> Iterator[str]:
    """Standard input, every piece as soon as it was written."""
    if sys.stdin is None:
        raise InputError("standard input is closed; pipe a text into it.")
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while data := os.read(sys.stdin.fileno(), _READ_BYTES):
            yield decoder.decode(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        raise InputError("standard input is not UTF-8 text.") from None
    except OSError as e:
        raise InputError(f"standard input cannot be read: {e.strerror or e}.") from None


class TextFeed:
    """Puts text into one utterance of a speech, without what cannot be said. With `dialogue`, each line is a turn."""

    def __init__(self, speech: Speech, speakable: Speakable, row: int = 0, dialogue: bool = False):
        self._speech, self.speakable, self._row, self._dialogue = speech, speakable, row, dialogue
        self._turn_began = False

    def add(self, piece: str) -> None:
        piece = self.speakable(piece)
        if not self._dialogue:
            self._speech.say(piece, self._row)
            return
        for i, line in enumerate(piece.split("\n")):
            # Blank lines are no turns.
            if i and self._turn_began:
                self.end_turn()
            self._turn_began = self._turn_began or bool(line.strip())
            self._speech.say(line, self._row)

    def end_turn(self) -> None:
        """The other speaker goes on."""
        self._speech.end_turn(self._row)
        self._turn_began = False

    def finish(self) -> None:
        """No more text will come. Refuses a text without a single word."""
        self._speech.end_turn(self._row)
        if not self._speech.words_said[self._row]:
            report = self.speakable.report()
            raise InputError(f"there is nothing to say: {report or 'the text has no words'}.")
