"""Ends of turns: when a speaker has finished, told by the model rather than by loudness (family.md 1.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import arguments
from ..defaults import PAUSE_HEAD, PAUSE_THRESHOLD
from ..errors import InputError

# The first second says nothing about the speaker.
IGNORED_STEPS = 12


@dataclass
class TurnDetector:
    """Reports the end of a turn once: when head `head` is surer than `threshold`, and words were said since the last one."""

    heads: int
    head: int = PAUSE_HEAD
    threshold: float = PAUSE_THRESHOLD

    def __post_init__(self) -> None:
        if not self.heads:
            raise InputError(
                "this checkpoint has no pause predictor, so it cannot report ends of turns; kyutai/stt-1b-en_fr-candle has one."
            )
        arguments.whole("the pause head", self.head)
        arguments.number("the pause threshold", self.threshold)
        if not 0 <= self.head < self.heads:
            raise InputError(f"this checkpoint has the pause heads 0 to {self.heads - 1}, found {self.head}.")
        if not 0 < self.threshold < 1:
            raise InputError(f"the pause threshold should lie between 0 and 1, found {self.threshold}.")
        self._steps = 0
        self._spoke = False

    def feed(self, pauses: np.ndarray, spoke: bool) -> bool:
        """Probabilities `[heads]` of one step, and whether words came with it; true at the end of a turn."""
        self._steps += 1
        self._spoke = self._spoke or spoke
        ended = self._spoke and self._steps > IGNORED_STEPS and float(pauses[self.head]) > self.threshold
        if ended:
            self._spoke = False
        return ended

    def reported(self) -> None:
        """Words so far belong to the turn that was reported."""
        self._spoke = False
