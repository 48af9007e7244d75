"""Repetition penalty of the text stream, as Kyutai's Rust server has it: word pieces said lately become less likely.

Of each row is kept, for every token, the number of the piece at which it was last said. So a context of any length takes one
comparison, and rows with different penalties, or none, are one graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..arguments import number, whole

MOST_PENALTY, LONGEST_CONTEXT = 1000.0, 2**31 - 1
# Before every piece that any context reaches back to.
NEVER = -(2**31)


@dataclass(frozen=True)
class RepetitionPenalty:
    """Logits of tokens among the last `context` pieces that were said are divided by `penalty` where positive, multiplied where negative.

    Padding and ends of padding are no pieces. 1 changes nothing, and neither does a context of 0.
    """

    penalty: float = 1.0
    context: int = 64

    def __post_init__(self) -> None:
        number("the repetition penalty", self.penalty, 1 / MOST_PENALTY, MOST_PENALTY)
        whole("the context of the repetition penalty", self.context, 0, LONGEST_CONTEXT)


def init(batch: int, vocabulary: int) -> dict[str, mx.array]:
    """Nothing said yet: `last` int32 `[B, V]`, and `count` int32 `[B]`, the number of pieces."""
    return {"last": mx.full((batch, vocabulary), NEVER, mx.int32), "count": mx.zeros((batch,), mx.int32)}


def row_values(penalties: Sequence[RepetitionPenalty]) -> dict[str, mx.array]:
    """What `apply` takes of one penalty per row: `penalty` float32 `[B]` and `context` int32 `[B]`."""
    return {
        "penalty": mx.array(np.array([p.penalty for p in penalties], np.float32)),
        "context": mx.array(np.array([p.context for p in penalties], np.int32)),
    }


def apply(logits: mx.array, said: dict[str, mx.array], values: dict[str, mx.array]) -> mx.array:
    """`logits [B, V]` float32, with those of pieces said lately made less likely."""
    logits, penalty = logits.astype(mx.float32), values["penalty"][:, None]
    lately = said["last"] > (said["count"] - values["context"])[:, None]
    return mx.where(lately, mx.where(logits >= 0, logits / penalty, logits * penalty), logits)


def after(said: dict[str, mx.array], text: mx.array, is_piece: mx.array) -> dict[str, mx.array]:
    """`said` with the tokens `text [B]` of a step, of which those count where `is_piece [B]`."""
    last, count = said["last"], said["count"] + is_piece
    now = (mx.arange(last.shape[1]) == text[:, None]) & is_piece[:, None]
    return {"last": mx.where(now, count[:, None], last), "count": count}
