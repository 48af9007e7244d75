"""One utterance on its way: its text machine, its voice prefix, its own clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..engine.token_clock import UNGENERATED, ZERO
from .machine import State, StateMachine


@dataclass
class Utterance:
    """`prefix [1 + codebooks, T]` is a clip to be continued, text row first. `starts [codebooks]`: the step at which each codebook begins.

    `offset` counts steps so far. More text may be appended to `state.entries` until `text_complete` is set.
    """

    state: State
    prefix: np.ndarray
    starts: np.ndarray
    offset: int = 0
    text_complete: bool = False
    logged: list[tuple[int, int]] = field(default_factory=list)

    @property
    def prefix_length(self) -> int:
        return self.prefix.shape[1]

    def ready(self, lookahead: int) -> bool:
        """Whether a step would do what it would do if all the text were known (family.md 2.8)."""
        if self.text_complete or self.offset < self.prefix_length:
            return True
        return not self.state.may_consume() or self.state.knows_enough(lookahead)

    def forced_audio(self) -> np.ndarray:
        """Codes `[codebooks]` imposed at this step: -1 until audio begins, then the prefix; -2 where the model is free."""
        forced = np.full(len(self.starts), UNGENERATED, np.int32)
        at = self.offset - self.starts
        forced[at < 0] = ZERO
        inside = (at >= 0) & (at < self.prefix_length)
        forced[inside] = self.prefix[1:][inside, at[inside]]
        return forced

    def text(self, machine: StateMachine, sampled: int, keep_log: bool) -> int:
        """The text token of this step in place of the `sampled` one."""
        if self.offset < self.prefix_length:
            given = int(self.prefix[0, self.offset])
        else:
            given, _ = machine.process(self.offset, self.state, sampled)
        if keep_log:
            self.logged.append((sampled, given))
        return given


def clipped(prefix, codebooks: int) -> np.ndarray:
    """A prefix as an utterance takes it; an empty one for None."""
    if prefix is None:
        return np.zeros((1 + codebooks, 0), np.int64)
    return np.array(prefix)[: 1 + codebooks]


def starts_of(delays: Sequence[int], delay_steps: int) -> np.ndarray:
    """The step at which each codebook's audio begins."""
    return np.array(delays) + delay_steps
