"""Text that cannot be spoken: found, and told in one sentence."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import InputError, clean
from .machine import Entry

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Without a known window: that of the published models, 40 s.
_WINDOW = 500
_PAUSE_SECONDS = 60
# A word still being written is given this many characters per token before it is refused.
_CHARACTERS = 8
_SYMBOLS = ("Cc", "Cf", "Cn", "Co", "Cs", "Sk", "So")


def check_entry(entry: Entry, window: int | None, frame_rate: float = 12.5) -> None:
    """Refuse a word that does not fit into the model's `window` (in steps), and a pause that nobody waits for."""
    if len(entry.tokens) > (window or _WINDOW):
        raise _too_long(entry.text, window)
    if not entry.tokens and entry.padding > _PAUSE_SECONDS * frame_rate:
        raise InputError(
            f"the text holds a pause of {entry.padding / frame_rate:.10g} s; a pause may last up to {_PAUSE_SECONDS} s."
        )


def check_unfinished(word: str, window: int | None) -> None:
    """The same for a word that is still being written."""
    if len(word) > _CHARACTERS * (window or _WINDOW):
        raise _too_long(word, window)


def _too_long(word: str, window: int | None) -> InputError:
    return InputError(
        f"the text holds a word of {len(word)} characters or more ({word[:20]!r}...), which cannot be spoken: the model's window has "
        f"{window or _WINDOW} steps; separate words by spaces."
    )


class Speakable:
    """Leaves out what a voice cannot say: control characters, and symbols such as emoji that the tokenizer does not know.

    Letters it does not know are those of a language the model was not taught; they are kept, and told.
    """

    def __init__(self, tokenizer: SentencePieceProcessor):
        self._tokenizer = tokenizer
        self._kinds: dict[str, list[str] | None] = {}
        self.left_out: list[str] = []
        self.foreign: list[str] = []

    def __call__(self, text: str) -> str:
        """`text` without what cannot be said, which is added to `left_out`."""
        return "".join(c for c in text if self._keep(c))

    def _keep(self, c: str) -> bool:
        if c not in self._kinds:
            self._kinds[c] = self._list_of(c)
        found = self._kinds[c]
        if found is not None:
            found.append(c)
        return found is not self.left_out

    def _list_of(self, c: str) -> list[str] | None:
        """Where a character is noted, None if nothing is wrong with it."""
        category = unicodedata.category(c)
        if c.isspace():
            return None
        if category in ("Cc", "Cs"):
            return self.left_out
        if not any(self._tokenizer.is_unknown(t) or self._tokenizer.is_byte(t) for t in self._tokenizer.encode(c)):
            return None
        if category in _SYMBOLS or 0xFE00 <= ord(c) <= 0xFE0F:
            return self.left_out
        return self.foreign if category[0] == "L" else None

    def report(self) -> str | None:
        """One sentence about what was left out or may not be understood; None if there was nothing."""
        said = []
        if self.left_out:
            said.append(
                f"left out {_counted('character', self.left_out)} that cannot be spoken: {_shown(self.left_out)}"
            )
        if self.foreign:
            said.append(
                f"{_counted('letter', self.foreign)} unknown to the model may sound wrong: {_shown(self.foreign)}"
            )
        return "; ".join(said) or None


def _counted(what: str, characters: list[str]) -> str:
    return f"{len(characters)} {what}{'' if len(characters) == 1 else 's'}"


def _shown(characters: list[str]) -> str:
    """The first eight kinds, those that cannot be printed by their number."""
    kinds = list(dict.fromkeys(characters))
    shown = " ".join(c if unicodedata.category(c)[0] != "C" else f"U+{ord(c):04X}" for c in kinds[:8])
    return f"{shown}{' ...' if len(kinds) > 8 else ''}"


def tags_report(tags: Iterable[str]) -> str | None:
    """One sentence about markup that was not spoken; None if there was none."""
    kinds = list(dict.fromkeys(clean(tag, 60) for tag in tags))
    if not kinds:
        return None
    return f"left out markup that says nothing to this voice: {' '.join(kinds[:6])}{' ...' if len(kinds) > 6 else ''}"
