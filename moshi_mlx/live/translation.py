"""A live translation: a session that begins as the model expects, and goes on when its source is over (family.md section 3).

A microphone is never over. A recording in its place is, and then the last words of the translation are still to come.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..defaults import TRANSLATION_SECONDS
from ..session import hibiki
from ..session.hibiki import Ending
from ..session.session import Frame, Session


class LiveTranslation(Session):
    """A session of a translation model. What Hibiki-Zero hears first belongs to the beginning of every conversation."""

    def reset(self, seed: int | None = None) -> None:
        super().reset(seed)
        if left_out := hibiki.lead_in(self):
            self._first += left_out
            self._start_text()

    def rest(self, tail: float = TRANSLATION_SECONDS) -> Iterator[Frame]:
        """Frames of the translation after the end of its source, until the model ends it or `tail` seconds have gone by."""
        without_last = self.lm.cfg.is_hibiki_zero
        ending = Ending(round(tail * self.mimi.frame_rate), without_last)
        for pcm, marked in ending.frames(self.frame_size):
            frame = self.step(pcm, marked)
            if ending.see(frame.text_token) and without_last:
                return
            yield frame
