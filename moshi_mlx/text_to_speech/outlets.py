"""Where the sound of a speech goes, and the loop that brings it there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .speech import Speech


@dataclass
class Outlet:
    """Takes the sound of one utterance. With `keep_codes` the audio codes of every frame are kept as well."""

    write: Callable[[np.ndarray], None]
    keep_codes: bool = False
    samples: int = 0
    codes: list[np.ndarray] = field(default_factory=list)
    first_sound: float | None = None

    def take(self, pcm: np.ndarray, codes: np.ndarray | None) -> None:
        if codes is None:
            return
        if self.first_sound is None:
            self.first_sound = time.perf_counter()
        self.samples += len(pcm)
        if self.keep_codes:
            self.codes.append(codes)
        self.write(pcm)


def run(
    speech: Speech,
    outlets: Sequence[Outlet],
    text: Iterable[None],
    limit: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> bool:
    """Speak while `text` goes on, each of its items meaning that more has been given to `speech`; then to the end.

    `limit` bounds the samples of an utterance. False if it was reached first.
    """

    def go_on() -> bool:
        while speech.ready:
            if limit is not None and max(o.samples for o in outlets) >= limit:
                return False
            frame = speech.step()
            for outlet, pcm, codes in zip(outlets, frame.pcm, frame.codes, strict=True):
                outlet.take(pcm, codes)
            if on_step:
                on_step()
        return True

    for _ in text:
        if not go_on():
            return False
    speech.finish()
    return go_on()
