"""Rows that come and go in the state of a batch: each with its own clock, seed, sampling, guidance and conditions.

A row is taken over by writing a state of one row into its place. Shapes stay, so nothing is traced or allocated again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from ..errors import InputError
from ..modules import repetition, transformer
from ..modules.repetition import RepetitionPenalty
from ..modules.sampling import Sampler, row_values
from .state import put_rows
from .step import Conditions, Step

# Longer ago than anything: null rows that read everything.
NEVER_MASKED = -(2**30)


@dataclass(frozen=True)
class Manner:
    """How one row is sampled and guided; what is None is as the batch was made.

    `pad_bonus` is added to the logit of the padding token. Guidance (`coef` other than 1, `masked_until` as in `Guidance`) is
    possible in a batch that was made with it, and so is a repetition penalty.
    """

    text_sampler: Sampler | None = None
    audio_sampler: Sampler | None = None
    coef: float | None = None
    masked_until: int | None = None
    pad_bonus: float = 0.0
    repetition_penalty: RepetitionPenalty | None = None


def init_state(step: Step, seeds: Sequence[int], capacity: int, manners: Sequence[Manner] | None) -> dict:
    """State before the first step of rows with a clock each, row b sampled and guided by `manners[b]` if there are any."""
    state = step.init_state(seeds, capacity, lockstep=False)
    return state if manners is None else {**state, "own": _own(step, manners)}


def _own(step: Step, manners: Sequence[Manner]) -> dict:
    g = step.guidance
    if not g.active and any(m.coef not in (None, 1.0) for m in manners):
        raise InputError("guidance of a row needs a batch that was made with it: cfg_coef other than 1.")
    penalty = step.repetition_penalty
    if penalty is None and any(m.repetition_penalty is not None for m in manners):
        raise InputError(
            "a repetition penalty of a row needs a batch that was made with one, such as RepetitionPenalty()."
        )
    own: dict[str, Any] = {
        "text": row_values([m.text_sampler or step.text_sampler for m in manners]),
        "audio": row_values([m.audio_sampler or step.audio_sampler for m in manners]),
        "pad_bonus": mx.array(np.array([m.pad_bonus for m in manners], np.float32)),
    }
    if penalty is not None:
        own["repetition"] = repetition.row_values([m.repetition_penalty or penalty for m in manners])
    if g.active:
        until = [NEVER_MASKED if m.masked_until is None else m.masked_until for m in manners]
        own["coef"] = mx.array(np.array([g.coef if m.coef is None else m.coef for m in manners], np.float32))
        own["masked_until"] = mx.array(np.array(until, np.int32))
    return own


def one_row(step: Step, capacity: int, seed: int, manner: Manner | None = None, begun: dict | None = None) -> dict:
    """One conversation for `put_row`: at its beginning, or in the state `begun`, which a batch of one row has arrived at.

    Without `manner` it is for a batch whose rows are all sampled and guided in the same way.
    """
    blank = init_state(step, [seed], capacity, None if manner is None else [manner])
    if begun is None:
        return {**blank, "trunk": nothing(blank["trunk"])}
    position = mx.broadcast_to(begun["trunk"]["position"], blank["trunk"]["position"].shape)
    return {
        **blank,
        "trunk": {**begun["trunk"], "position": position},
        "tokens": begun["tokens"],
        "offset": mx.broadcast_to(begun["offset"], (1,)),
        **({"said": begun["said"]} if "said" in blank and "said" in begun else {}),
    }


def nothing(state: Any) -> Any:
    """Zeros in the shape of a state that begins with zeros, without memory of their own."""
    return tree_map(lambda a: mx.broadcast_to(mx.array(0, a.dtype), a.shape), state)


def put_row(step: Step, state: dict, one: dict, row: int) -> dict:
    """`state` with row `row` replaced by `one`, see `one_row`; the rings are as large as the larger of both."""
    capacity = max(transformer.capacity_of(s["trunk"]) for s in (state, one))
    state, one = ({**s, "trunk": transformer.grow(s["trunk"], capacity)} for s in (state, one))
    return put_rows(state, one, row_indices(step, row, state["tokens"].shape[0]))


def for_rows(conditions: Conditions) -> Conditions:
    """Conditions whose rows `put_conditions` may replace, whatever the length of their sources."""
    if conditions.cross is None:
        return conditions
    _, rows, _, length, _ = conditions.cross[0].shape
    return Conditions(conditions.total, conditions.cross, mx.ones((rows, 1, 1, length), mx.bool_))


def put_conditions(conditions: Conditions, one: Conditions, at: Sequence[mx.array]) -> Conditions:
    """`conditions`, made by `for_rows`, with the rows `at` replaced by `one`. A source longer than any before makes all longer."""
    one = for_rows(one)
    if conditions.cross is not None and one.cross is not None:
        length = max(c.cross[0].shape[3] for c in (conditions, one) if c.cross is not None)
        conditions, one = _lengthened(conditions, length), _lengthened(one, length)
    replaced = Conditions(**put_rows(conditions.tree(), one.tree(), at))
    mx.eval(replaced.tree())
    return replaced


def _lengthened(conditions: Conditions, length: int) -> Conditions:
    assert conditions.cross is not None and conditions.cross_mask is not None
    more = length - conditions.cross[0].shape[3]
    if not more:
        return conditions
    cross = [mx.pad(c, [(0, 0)] * 3 + [(0, more), (0, 0)]) for c in conditions.cross]
    return Conditions(conditions.total, cross, mx.pad(conditions.cross_mask, [(0, 0)] * 3 + [(0, more)]))


def row_indices(step: Step, row: int, batch: int) -> list[mx.array]:
    """Where row `row` lies in arrays of the batch, with guidance its null row after it: int32 `[1]` each."""
    return [mx.array([i], mx.int32) for i in ([row, batch + row] if step.guidance.active else [row])]
