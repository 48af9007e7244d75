"""Transcripts as files: plain text, JSON, and subtitles (SubRip and WebVTT)."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..defaults import TRANSCRIPTS
from ..errors import InputError
from ..text import Word
from .transcribe import Transcript
from .words import spoken

# A subtitle ends at the end of a sentence, before a pause, or when it is as long as two lines or as a reader's patience.
MAX_CHARACTERS = 84
MAX_SECONDS = 6.0
PAUSE_SECONDS = 1.0
MIN_SECONDS = 0.08
_SENTENCE_ENDS = (".", "!", "?", "\u2026", "\u3002")


def cues(words: Sequence[Word]) -> Iterator[list[Word]]:
    """Words grouped into subtitles, none of them longer than it takes to say."""
    cue: list[Word] = []
    for word in map(spoken, words):
        if cue and not _fits(cue, word):
            yield cue
            cue = []
        cue.append(word)
    if cue:
        yield cue


def _fits(cue: list[Word], word: Word) -> bool:
    characters = sum(len(w.text) + 1 for w in cue) + len(word.text)
    ended = cue[-1].text.endswith(_SENTENCE_ENDS)
    silent = word.start - cue[-1].end >= PAUSE_SECONDS
    return characters <= MAX_CHARACTERS and word.end - cue[0].start <= MAX_SECONDS and not ended and not silent


def as_text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def as_json(transcript: Transcript) -> str:
    return json.dumps(json_object(transcript), ensure_ascii=False, indent=1) + "\n"


def json_object(transcript: Transcript) -> dict:
    return {
        "source": transcript.source,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
        "words": [{"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in transcript.words],
    }


def as_srt(transcript: Transcript) -> str:
    blocks = [
        f"{i}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n"
        for i, (start, end, text) in enumerate(_timed(transcript), 1)
    ]
    return "\n".join(blocks)


def as_vtt(transcript: Transcript) -> str:
    blocks = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n"
        for start, end, text in _timed(transcript)
    ]
    return "\n".join(["WEBVTT\n", *blocks])


def _timed(transcript: Transcript) -> Iterator[tuple[float, float, str]]:
    """Subtitles that follow each other, none of them empty in time."""
    grouped = list(cues(transcript.words))
    for i, cue in enumerate(grouped):
        start, end = cue[0].start, max(cue[-1].end, cue[0].start + MIN_SECONDS)
        if i + 1 < len(grouped):
            end = max(min(end, grouped[i + 1][0].start), start)
        yield start, end, _lines([w.text for w in cue])


def _lines(words: Sequence[str]) -> str:
    """One line, or two of about the same length."""
    text = " ".join(words)
    if len(text) <= MAX_CHARACTERS // 2 or len(words) < 2:
        return text
    splits = [" ".join(words[:i]) + "\n" + " ".join(words[i:]) for i in range(1, len(words))]
    return min(splits, key=lambda s: max(len(line) for line in s.split("\n")))


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    whole, milliseconds = divmod(milliseconds, 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{milliseconds:03d}"


FORMATS: dict[str, Callable[[Transcript], str]] = dict(
    zip(TRANSCRIPTS, (as_text, as_json, as_srt, as_vtt), strict=True)
)


def format_of(path: str | Path) -> str:
    """Format by a file's ending."""
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in FORMATS:
        raise InputError(f"{path} should end in .{', .'.join(FORMATS)}, which is how the format is chosen.")
    return ending
