"""Text made into entries for the text machine: words, pauses, turns (family.md 2.2).

`ScriptReader` takes text in pieces of any size, as a language model or a keyboard produces it, and gives every word as soon
as it is complete; the entries do not depend on how the text was cut.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .machine import Entry, TokenIds

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

_REPLACED = str.maketrans({"\u2019": "'", ":": " ", "(": None, ")": None})
_NAME = r"[A-Za-z][\w:-]*"
# Quotes that a word processor bends are quotes all the same; a value of one word needs none.
_VALUE = r"""(?:"[^"<>]*"|'[^'<>]*'|[“”„][^“”<>]*[“”]|[^\s"'“”„<>=/]+)"""
_KEY = r"\s+[\w:-]+\s*"
# A tag of speech markup with its name and attributes; a comment or declaration; or what stands between two words, a colon too.
_SEPARATOR = re.compile(rf"<(/?{_NAME})((?:{_KEY}=\s*{_VALUE})*)\s*/?>|<(?:!--|[?!][A-Za-z])[^<>]*>|[\s:]+")
# The only markup of the published package; everything else is words there.
_PUBLISHED_SEPARATOR = re.compile(r'<(break)(\s+time="[0-9]+(?:\.[0-9]*)?s")\s*/?>|\s+')
# What more text may make a tag.
_UNFINISHED_VALUE = r"""(?:"[^"<>]*\Z|'[^'<>]*\Z|[“”„][^“”<>]*\Z|[^\s"'“”„<>=/]*\Z)"""
_UNFINISHED_TAG = re.compile(
    rf"</?(?:\Z|{_NAME}(?:{_KEY}=\s*{_VALUE})*(?:\s*/?\Z|{_KEY}(?:\Z|=\s*{_UNFINISHED_VALUE})))|<(?:!-?\Z|[?!]\Z|(?:!--|[?!][A-Za-z])[^<>]*\Z)"
)
_ATTRIBUTE = re.compile(rf"([\w:-]+)\s*=\s*({_VALUE})")
# What markup cannot write as it is.
_ENTITY = re.compile("&(?:amp|lt|gt|quot|apos);")
_TIME = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s)\s*")
# Seconds of the strengths of the W3C's markup, and of a break that says nothing.
_STRENGTHS = {"none": 0.0, "x-weak": 0.1, "weak": 0.25, "medium": 0.5, "strong": 1.0, "x-strong": 1.5}
# These stand around a text and say nothing of how it sounds.
_SILENT_TAGS = ("speak", "p", "s")


def pause_of(attributes: str) -> float | None:
    """Seconds of a `<break ...>` by its attributes, `time="1.5s"`, `time='500ms'` or `strength="weak"`; None where they say nothing
    that is understood.
    """
    said = {name.lower(): value.strip("\"'“”„") for name, value in _ATTRIBUTE.findall(attributes)}
    if "time" in said:
        match = _TIME.fullmatch(said["time"].lower())
        if match is None:
            return None
        # So long that it will be refused, and still a number.
        return min(float(match[1]) / (1000 if match[2] == "ms" else 1), 1e6)
    return _STRENGTHS.get(said.get("strength", "medium").lower())


class ScriptReader:
    """Reads the turns of one script. The main speaker begins; `end_turn` hands over to the other one.

    `markup`: breaks in all their forms are understood and other tags left out; else only `<break time="1.5s"/>` is no word.
    """

    def __init__(
        self,
        tokenizer: SentencePieceProcessor,
        token_ids: TokenIds,
        frame_rate: float,
        multi_speaker: bool = True,
        padding_between: int = 0,
        markup: bool = True,
    ):
        self._separator, self._markup = _SEPARATOR if markup else _PUBLISHED_SEPARATOR, markup
        self._tokenizer, self._frame_rate = tokenizer, frame_rate
        self._speaker_tokens = (token_ids.main, token_ids.other) if multi_speaker else None
        self._padding_between = padding_between
        self._turn = 0
        self._announced: int | None = None
        self._turn_has_word = False
        self._pending = ""
        # Tags that were left out, as they were written.
        self.left_out: list[str] = []

    @property
    def pending(self) -> str:
        """Text that is not yet a whole word or pause."""
        return self._pending

    def feed(self, text: str) -> list[Entry]:
        """Entries completed by `text`."""
        self._pending += text if self._markup else text.translate(_REPLACED)
        return self._take(self._unfinished_tag())

    def end_turn(self) -> list[Entry]:
        """The last entries of this turn."""
        entries = self._take(len(self._pending))
        entries += self._words(self._pending)
        self._pending = ""
        self._turn, self._turn_has_word = self._turn + 1, False
        return entries

    def _unfinished_tag(self) -> int:
        """Where a pause begins that more text may complete; the end if nowhere."""
        at = self._pending.find("<")
        while at >= 0:
            if _UNFINISHED_TAG.match(self._pending, at):
                return at
            at = self._pending.find("<", at + 1)
        return len(self._pending)

    def _take(self, end: int) -> list[Entry]:
        """Entries that are complete before position `end`; the rest stays pending."""
        entries, start = [], 0
        for match in self._separator.finditer(self._pending, 0, end):
            entries += self._words(self._pending[start : match.start()])
            if match[1] is not None:
                entries += self._tag(match)
            start = match.end()
        self._pending = self._pending[start:]
        return entries

    def _tag(self, match: re.Match[str]) -> list[Entry]:
        """The pause of a break; other tags are left out, as are breaks that say nothing."""
        name = match[1].lower()
        seconds = pause_of(match[2]) if name == "break" else None
        if seconds is None:
            if name.removeprefix("/") not in _SILENT_TAGS and name != "/break":
                self.left_out.append(match[0])
            return []
        return [Entry([], match[0] if self._markup else "", round(seconds * self._frame_rate))]

    def _words(self, text: str) -> list[Entry]:
        """What stands between two separators: one word, or none where all of it is left out."""
        word = text.translate(_REPLACED)
        if self._markup:
            word = _ENTITY.sub(lambda match: html.unescape(match[0]), word)
        return [self._word(word)] if word else []

    def _word(self, word: str) -> Entry:
        tokens = list(self._tokenizer.encode(word))
        speaker = self._turn % 2
        if self._speaker_tokens and not self._turn_has_word and speaker != self._announced:
            tokens.insert(0, self._speaker_tokens[speaker])
            self._announced = speaker
        self._turn_has_word = True
        between = self._padding_between
        return Entry(tokens, word, max(0, between + len(tokens) - 1) if between > 0 else 0)


def script_to_entries(
    tokenizer: SentencePieceProcessor,
    token_ids: TokenIds,
    frame_rate: float,
    script: Sequence[str],
    multi_speaker: bool = True,
    padding_between: int = 0,
) -> list[Entry]:
    """Entries of a whole script: turns by the main and the other speaker in alternation, beginning with the main one.

    `frame_rate` in steps per second. `multi_speaker`: the model knows two speakers and is told who begins a turn.
    `padding_between` above 0 forces that many steps after each word, for clearer speech. The entries are those of
    the published package, which knows no markup but breaks in one form.
    """
    reader = ScriptReader(tokenizer, token_ids, frame_rate, multi_speaker, padding_between, markup=False)
    entries: list[Entry] = []
    for turn in script:
        entries += reader.feed(turn)
        entries += reader.end_turn()
    return entries
