"""When somebody begins and stops to speak, by how surely they pause."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....speech_to_text.pauses import IGNORED_STEPS
from ..errors import bad

STARTED, STOPPED = "started", "stopped"
# Surer than this is a pause, less sure speech; in between all stays as it was. Two frames on end, for one may be a slip.
PAUSED, SPEAKING, FRAMES = 0.6, 0.4, 2
# The figure for a pause of 2 s, which foresees it; lower ones (0.5 and 1 s) are more eager.
HEAD = 2
# Milliseconds of silence that a client calls the end of speech, up to which figure; beyond is the last.
_SILENCE_MS = ((500, 0), (1000, 1), (2000, 2))
_EAGERNESS = {"high": 1, "medium": 2, "auto": 2, "low": 3}


@dataclass
class Turns:
    """Feed one frame after the other. `head` chooses among the figures of a frame, three at least."""

    head: int = HEAD
    threshold: float = PAUSED

    def __post_init__(self) -> None:
        self.speaking = False
        # What is still being said belongs to a turn that the client has ended.
        self._cut = False
        self._frames = self._against = 0

    def feed(self, pauses: Sequence[float], words: bool) -> str | None:
        """`STARTED`, `STOPPED` or nothing new. Who says a word is speaking, whatever the figures say."""
        self._frames += 1
        sure = pauses[min(self.head, len(pauses) - 1)]
        if words and not self.speaking:
            return self._change()
        # The first second says nothing.
        if self.speaking or self._cut:
            differs = sure > self.threshold
        else:
            differs = sure < SPEAKING and self._frames > IGNORED_STEPS
        self._against = self._against + 1 if differs and not words else 0
        if self._against < FRAMES:
            return None
        if self._cut:
            self._cut, self._against = False, 0
            return None
        return self._change()

    def _change(self) -> str:
        self.speaking, self._cut, self._against = not self.speaking, False, 0
        return STARTED if self.speaking else STOPPED

    def cut(self) -> None:
        """The client has ended the turn: the next one begins after a pause, or with a word."""
        self.speaking, self._cut, self._against = False, True, 0


def detector(wanted: Any) -> Turns | None:
    """Of a session's `turn_detection`; None where the client itself says when a turn ends. Raises `ApiError`."""
    where = "session.audio.input.turn_detection"
    if wanted is None:
        return None
    if not isinstance(wanted, dict) or wanted.get("type", "server_vad") not in ("server_vad", "semantic_vad"):
        raise bad(f"{where} should be null, or of the type server_vad or semantic_vad.", where, "invalid_value")
    silence, eagerness = wanted.get("silence_duration_ms"), wanted.get("eagerness")
    if isinstance(silence, (int, float)) and not isinstance(silence, bool):
        return Turns(next((head for most, head in _SILENCE_MS if silence <= most), 3))
    return Turns(_EAGERNESS.get(eagerness, HEAD) if isinstance(eagerness, str) else HEAD)
