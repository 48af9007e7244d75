"""Conversations in the rows of one batch that join late, pause, leave and are replaced, each as exact as alone.

    rows = Rows(frame_step, 4)
    rows.join(2, seed=7)                       # any row, at any time; nothing is traced or allocated again
    out = rows.step({0: pcm, 2: pcm})          # the rows that have 80 ms of sound; the others stand still

Belongs to the thread that made it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .. import arguments
from ..audio.samples import as_frame
from ..config.reader import LARGEST, MOST
from ..errors import InputError
from ..machine.owner import Owner
from ..modules import transformer
from . import row_state
from .frame import FrameStep
from .row_state import Manner
from .state import let_go, put_rows
from .step import Conditions


class RowFrame(NamedTuple):
    """80 ms of one row: `pcm` float32 `[1920]` and `tokens` int32 `[1 + dep_q]`, text first, -2 while the delays fill."""

    pcm: np.ndarray
    tokens: np.ndarray


class Rows:
    """`count` rows of `frame_step`, whose conditions, if it has any, are those of as many rows.

    `capacity`: slots of the key/value rings to begin with; they grow with the oldest row up to the model's window. `alike`: all rows are
    sampled and guided as `frame_step` says, which may then be in any way.
    """

    def __init__(self, frame_step: FrameStep, count: int, capacity: int | None = None, alike: bool = False):
        count = arguments.whole("rows", count, 1, MOST)
        if capacity is not None:
            capacity = arguments.whole("capacity", capacity, 1, LARGEST)
        self._owner = Owner("this batch of rows")
        self.frame_step, self.count, self.alike = frame_step, count, alike
        self._step, self._mimi = frame_step.step, frame_step.mimi
        self._state = self._init_state(capacity or self._step.capacities(count)[0])
        conditions = frame_step.conditions
        self._conditions = None if conditions is None else row_state.for_rows(conditions)
        self._codec = self._mimi.init_encoder(1, lockstep=False), self._mimi.init_decoder(1, lockstep=False)
        self._steps = np.zeros(count, int)
        self._frames = np.zeros(count, int)
        # Rows that have not made their first step, which reads initial tokens only.
        self._fresh = np.zeros(count, bool)

    def _init_state(self, capacity: int) -> dict:
        return {
            "lm": row_state.init_state(
                self._step, [0] * self.count, capacity, None if self.alike else [Manner()] * self.count
            ),
            "encoder": self._mimi.init_encoder(self.count, lockstep=False),
            "decoder": self._mimi.init_decoder(self.count, lockstep=False),
        }

    @property
    def state(self) -> dict:
        """Arrays that the last step left."""
        return self._state

    @property
    def capacity(self) -> int:
        """Slots of the key/value rings now."""
        return transformer.capacity_of(self._state["lm"]["trunk"])

    def frames(self, row: int) -> int:
        """Frames that row `row` has heard since it was joined."""
        return int(self._frames[self._row(row)])

    def _row(self, row: int) -> int:
        return arguments.whole("a row", row, 0, self.count - 1)

    # Coming and going -----------------------------------------------------------------------------------------------

    def join(
        self,
        row: int,
        seed: int = 0,
        manner: Manner | None = None,
        conditions: Conditions | None = None,
        begun: dict | None = None,
        steps: int = 0,
    ) -> None:
        """Begin a conversation in row `row`; nothing is left there of the one before.

        `conditions` of one row, with guidance of two, replace those of the row; without them it keeps what it had. `begun`: a state
        of the language model that a batch of one row arrived at in `steps` steps, such as a prompt's; else the conversation is new.
        """
        row, seed = self._row(row), arguments.whole("seed", seed)
        if conditions is not None and self._conditions is None:
            raise InputError("conditions of a row need a batch that was made with conditions.")
        if self.alike and manner is not None:
            raise InputError("rows of this batch are all sampled and guided alike.")
        with self._owner:
            self._replace(row, seed, None if self.alike else manner or Manner(), conditions, begun)
        self._steps[row], self._frames[row], self._fresh[row] = steps, 0, begun is None

    def _replace(
        self, row: int, seed: int, manner: Manner | None, conditions: Conditions | None, begun: dict | None
    ) -> None:
        one = row_state.one_row(self._step, self.capacity, seed, manner, begun)
        encoder, decoder = self._codec
        at = row_state.row_indices(self._step, row, self.count)
        old = self._state
        self._state = {
            "lm": row_state.put_row(self._step, old["lm"], one, row),
            "encoder": put_rows(old["encoder"], encoder, at[:1]),
            "decoder": put_rows(old["decoder"], decoder, at[:1]),
        }
        let_go(old)
        if conditions is not None and self._conditions is not None:
            self._conditions = row_state.put_conditions(self._conditions, conditions, at)
        mx.eval(self._state)

    def leave(self, row: int) -> None:
        """The conversation in row `row` is over. The row waits to be joined again, and until then stays as old as it is."""
        self._fresh[self._row(row)] = False

    def hear_anew(self, row: int) -> None:
        """Let the encoder of row `row` begin anew, and the row's frames count from here."""
        encoder = self._codec[0]
        self._state["encoder"] = put_rows(self._state["encoder"], encoder, [mx.array([row], mx.int32)])
        self._frames[row] = 0

    # Stepping -------------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Make the first steps of rows that have joined, which hear nothing. Steps that follow for other rows do it as well."""
        if self._fresh.any():
            self._run({}, ())

    def step(self, given: Mapping[int, np.ndarray], ended: Collection[int] = ()) -> dict[int, RowFrame]:
        """The next 80 ms of some rows, `[1920]` each, sound as `Session.step` takes it -> their replies. The others stand still.

        What is no sound is refused, and all rows stay where they are. Rows in `ended` tell a translation model that their source is over; their sound is then not heard.
        """
        frames = {self._row(row): as_frame(pcm, self._mimi.frame_size) for row, pcm in given.items()}
        if any(self._fresh[row] for row in frames):
            self.settle()
        sound, tokens = self._run(frames, ended)
        return {row: RowFrame(sound[row], tokens[row]) for row in given}

    def _run(self, given: Mapping[int, np.ndarray], ended: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        with self._owner:
            return self._masked(given, ended)

    def _masked(self, given: Mapping[int, np.ndarray], ended: Collection[int]) -> tuple[np.ndarray, np.ndarray]:
        pcm = np.zeros((self.count, self._mimi.frame_size), np.float32)
        heard, marked = np.zeros(self.count, bool), np.zeros(self.count, bool)
        for row, frame in given.items():
            pcm[row], heard[row], marked[row] = frame, True, row in ended
        fresh = self._fresh.copy()
        old = self._state
        masks = (mx.array(heard), mx.array(fresh), mx.array(marked))
        self._state, sound, tokens = self.frame_step.masked(
            old, mx.array(pcm), int(self._steps.max()), *masks, self._conditions
        )
        # With the state: an interrupt may come at any call.
        self._steps += heard | fresh
        self._frames += heard
        self._fresh[:] = False
        let_go(old)
        mx.eval(self._state, sound, tokens)
        if self.frame_step.grown:
            mx.clear_cache()
        return np.array(sound), np.array(tokens)

    def warm_up(self) -> None:
        """Step nobody through every size that the rings will have: what steps need is compiled then."""
        pcm, nobody = mx.zeros((self.count, self._mimi.frame_size)), mx.zeros((self.count,), mx.bool_)
        for capacity in self._step.capacities(self.count):
            if capacity >= self.capacity:
                old = self._init_state(capacity)
                new = self.frame_step.masked(old, pcm, 0, nobody, nobody, nobody, self._conditions)
                let_go(old)
                mx.eval(new)
        old = {}
        mx.clear_cache()
