"""Transcripts in the formats of `/v1/audio/transcriptions`."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Any

from ...speech_to_text.transcribe import Transcript
from ...speech_to_text.writers import FORMATS, cues
from ...text import Word

JSON, VERBOSE = "json", "verbose_json"
# What is no JSON, and how it is labelled.
PLAIN = {"text": ("txt", "text/plain"), "srt": ("srt", "text/plain"), "vtt": ("vtt", "text/vtt")}
NAMES = (JSON, "text", "srt", VERBOSE, "vtt")
WORD, SEGMENT = "word", "segment"
GRANULARITIES = (WORD, SEGMENT)


def plain(transcript: Transcript, name: str) -> tuple[str, str]:
    """`text`, `srt` or `vtt`: the body and its type."""
    form, content_type = PLAIN[name]
    return FORMATS[form](transcript), content_type


def short(transcript: Transcript) -> dict[str, Any]:
    """`json`."""
    return {"text": transcript.text, "usage": usage(transcript.duration)}


def verbose(transcript: Transcript, language: str, granularities: Collection[str]) -> dict[str, Any]:
    """`verbose_json`. `language` is what the client said it is: these models do not tell."""
    found: dict[str, Any] = {
        "task": "transcribe",
        "language": language,
        "duration": round(transcript.duration, 3),
        "text": transcript.text,
    }
    if WORD in granularities:
        found["words"] = [
            {"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in transcript.words
        ]
    if SEGMENT in granularities:
        found["segments"] = [_segment(number, cue) for number, cue in enumerate(cues(transcript.words))]
    return {**found, "usage": usage(transcript.duration)}


def usage(seconds: float) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(seconds, 3)}


def _segment(number: int, words: list[Word]) -> dict[str, Any]:
    """A subtitle as Whisper describes it; clients insist on every field. No probabilities are known here: those are 0."""
    text = " ".join(w.text for w in words)
    start = words[0].start
    return {
        "id": number,
        "seek": round(100 * start),
        "start": round(start, 3),
        "end": round(words[-1].end, 3),
        "text": text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": round(len(text.encode()) / len(zlib.compress(text.encode())), 3),
        "no_speech_prob": 0.0,
    }
