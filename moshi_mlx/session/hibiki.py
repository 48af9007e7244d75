"""Hibiki, simultaneous speech translation: where a translation begins and ends (family.md section 3).

The model hears that its source is over by one frame of markers in place of codes, goes on over silence, and says itself, by the
end of its text, when the translation is complete.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..checkpoint.loader import Checkpoint
from .session import Session

EOS, PAD = 2, 3


def is_translation(loaded: Checkpoint) -> bool:
    return loaded.config.model_type == "hibiki"


def lead_in(session: Session) -> int:
    """What comes before a recording: one frame of silence for Hibiki-Zero, nothing else. Returns the frames to leave out.

    The encoder begins anew after it, as it did in the reference's separate encoding of that silence.
    """
    if not session.lm.cfg.is_hibiki_zero:
        return 0
    session.step(np.zeros((session.batch, session.frame_size), np.float32))
    session.state = {**session.state, "encoder": session.mimi.init_encoder(session.batch)}
    return 1


class Ending:
    """The way one translation ends: marker, then silence until the model says so, or until `tail` frames have gone by.

    `done` is set by `see`, which is shown the text token of every frame; `complete` tells that the model ended it, `marked` that its
    source is over. `without_last`: the frame with the end of the text is not part of the translation (Hibiki-Zero).
    """

    def __init__(self, tail: int, without_last: bool = False):
        self._tail, self._without_last = tail, without_last
        self.marked = self.done = self.complete = False

    def frames(self, size: int) -> Iterator[tuple[np.ndarray, bool]]:
        """What follows the source, as audio `[size]` and whether this frame carries the marker."""
        silence = np.zeros(size, np.float32)
        self.marked = True
        yield silence, True
        for _ in range(self._tail):
            if self.done:
                return
            yield silence, False
        self.done = True

    def see(self, token: int) -> bool:
        """The text token of the frame that came of the last one fed; true once it is the end.

        An end before the source is over is not one: the model reads it back as padding.
        """
        if self.marked and token == EOS:
            self.done = self.complete = True
        return self.complete

    def wants(self, token: int, held: list) -> bool:
        """As `see`, for who writes the frames `held`, the newest last: whether they are part of the translation by now.

        Of one that the model does not end, nothing is kept after its last word.
        """
        ended = self.see(token)
        if ended and self._without_last:
            held.pop()
        return ended or not self.marked or token != PAD
