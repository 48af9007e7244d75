"""Words on standard output while they are found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..config.parts import LmConfig
from ..text import Detokenizer
from .live import Event, LiveWord, TurnEnd

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor


class TextPrinter:
    """Prints the text of one recording as its tokens come."""

    def __init__(self, tokenizer: SentencePieceProcessor, cfg: LmConfig):
        self._detokenizer, self._begun = Detokenizer(tokenizer, cfg), False

    def add(self, row: int, token: int) -> None:
        text = self._detokenizer.feed(token)
        if not self._begun:
            text = text.lstrip()
        self._begun = self._begun or bool(text)
        if text:
            print(text, end="", flush=True)

    def end(self) -> None:
        print(self._detokenizer.flush(), flush=True)


def show_events(events: Sequence[Event], times: bool, as_json: bool) -> None:
    """A line per turn; with `times` one per word, with `as_json` one object per event."""
    for event in events:
        if as_json:
            print(json.dumps(event_object(event), ensure_ascii=False), flush=True)
        elif isinstance(event, LiveWord):
            if times:
                print(f"[{event.start:.2f}] {event.text}", flush=True)
            else:
                print(event.text, end=" ", flush=True)
        elif isinstance(event, TurnEnd):
            print("[end of turn]" if times else "", flush=True)


def event_object(event: Event) -> dict:
    """An event as it is printed: a `word`, an `end_of_word` (of the last one) or an `end_of_turn`, times in seconds."""
    if isinstance(event, LiveWord):
        return {"type": "word", "text": event.text, "start": round(event.start, 3)}
    if isinstance(event, TurnEnd):
        return {"type": "end_of_turn", "time": round(event.time, 3), "text": event.text}
    return {"type": "end_of_word", "end": round(event.end, 3)}
