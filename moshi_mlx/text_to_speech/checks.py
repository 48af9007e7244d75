"""Text that cannot be spoken: found, and told in one sentence."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from ..errors import InputError
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
        raise _too_long(entry.text)
    if not entry.tokens and entry.padding > _PAUSE_SECONDS * frame_rate:
        raise InputError(
            f"the text holds a pause of {entry.padding / frame_rate:.0f} s; a pause may last up to {_PAUSE_SECONDS} s."
        )


def check_unfinished(word: str, window: int | None) -> None:
    """The same for a word that is still being written."""
    if len(word) > _CHARACTERS * (window or _WINDOW):
        raise _too_long(word)


def _too_long(word: str) -> InputError:
    return InputError(
        f"the text holds a word of {len(word)} characters or more ({word[:20]!r}...), which cannot be spoken; separate words by spaces."
    )


class Speakable:
    """Leaves out what a voice cannot say: control characters, and symbols such as emoji that the tokenizer does not know."""

    def __init__(self, tokenizer: SentencePieceProcessor):
        self._tokenizer = tokenizer
        self._known: dict[str, bool] = {}
        self.left_out: list[str] = []

    def __call__(self, text: str) -> str:
        """`text` without what cannot be said, which is added to `left_out`."""
        return "".join(c for c in text if self._keep(c))

    def _keep(self, c: str) -> bool:
        if c not in self._known:
            self._known[c] = c.isspace() or not self._is_symbol(c)
        if not self._known[c]:
            self.left_out.append(c)
        return self._known[c]

    def _is_symbol(self, c: str) -> bool:
        if unicodedata.category(c) in ("Cc", "Cs"):
            return True
        if unicodedata.category(c) not in _SYMBOLS and not 0xFE00 <= ord(c) <= 0xFE0F:
            return False
        tokens = self._tokenizer.encode(c)
        return any(self._tokenizer.is_unknown(t) or self._tokenizer.is_byte(t) for t in tokens)

    def report(self) -> str | None:
        """One sentence about what was left out; None if nothing was."""
        if not self.left_out:
            return None
        kinds = dict.fromkeys(self.left_out)
        shown = " ".join(c if unicodedata.category(c)[0] != "C" else f"U+{ord(c):04X}" for c in list(kinds)[:8])
        count = len(self.left_out)
        return f"left out {count} character{'' if count == 1 else 's'} that cannot be spoken: {shown}{' ...' if len(kinds) > 8 else ''}"
