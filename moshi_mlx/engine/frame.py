"""One frame of full-duplex talk as one graph: user audio in, reply audio and tokens out.

    (state, pcm) -> (state, pcm, tokens)

Mimi encodes, the language model steps, Mimi decodes; nothing is evaluated in between, so a frame costs one evaluation.
State: `{"lm": step state, "encoder": ..., "decoder": ...}`. Conversations advance together, or each has its own clock and
stands still where a mask says so (see `rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..models import mimi_model
from ..models.mimi_model import MimiModel
from ..modules import transformer
from .state import copy_containers, let_go
from .step import Conditions, Step


class FrameStep:
    """The frame of one model, codec and set of options. Holds no conversation.

    `pause_at_end`: the encoder does not hear the frame that carries the end marker of a translation.
    """

    def __init__(
        self,
        step: Step,
        mimi: MimiModel,
        conditions: Conditions | None = None,
        compile: bool = True,
        pause_at_end: bool = True,
    ):
        self.step, self.mimi, self.conditions = step, mimi, conditions
        self.pause_at_end = pause_at_end
        # Whether the last frame began with larger rings.
        self.grown = False
        wrap: Callable = mx.compile if compile else lambda f: f
        self._speaking, self._silent, self._masked = wrap(self._frame), wrap(self._listen), wrap(self._rows)

    def init_state(self, seeds: Sequence[int], capacity: int | None = None) -> dict:
        """State before the first frame of `len(seeds)` conversations, rings of the first size unless `capacity` says more."""
        batch = len(seeds)
        capacity = capacity or self.step.capacities(batch)[0]
        return {
            "lm": self.step.init_state(seeds, capacity),
            "encoder": self.mimi.init_encoder(batch),
            "decoder": self.mimi.init_decoder(batch),
        }

    def first(self, state: dict) -> dict:
        """The language model's first step, which reads initial tokens only."""
        return {**state, "lm": self.step.first(state["lm"], self.conditions)}

    def __call__(
        self, state: dict, pcm: mx.array, steps: int, ended: mx.array | None = None
    ) -> tuple[dict, mx.array, mx.array]:
        """`pcm [B, 1920]` after `steps` steps -> new state, reply `[B, 1920]`, tokens `[B, 1 + dep_q]`; nothing is evaluated.

        `ended` bool `[B]`: where it is true this frame says that the user's side is over (family.md section 3).
        """
        state = self._with_room(state, steps)
        has_reply = steps + 1 > self.step.clock.max_delay and self.step.generated > 0
        run = self._speaking if has_reply else self._silent
        return run(state, pcm, ended)

    def masked(
        self,
        state: dict,
        pcm: mx.array,
        steps: int,
        heard: mx.array,
        fresh: mx.array,
        ended: mx.array,
        conditions: Conditions | None,
    ) -> tuple[dict, mx.array, mx.array]:
        """A frame of rows with a clock each, the oldest `steps` steps old: as a call, for the rows where `heard` is true.

        `heard`, `fresh`, `ended` bool `[B]`: the row's sound is heard; the row makes its first step, which hears nothing; the user's
        side ends with this frame. A row that is neither heard nor fresh leaves no trace. `conditions` are those of the rows.
        """
        tree = None if conditions is None else conditions.tree()
        return self._masked(self._with_room(state, steps), pcm, heard, fresh, ended, tree)

    def _rows(
        self, state: dict, pcm: mx.array, heard: mx.array, fresh: mx.array, ended: mx.array, conditions: dict | None
    ) -> tuple[dict, mx.array, mx.array]:
        given = self.step.clock.given
        listens = heard & ~ended if self.pause_at_end else heard
        codes, encoder = self.mimi.encode_chunk(pcm[:, None], state["encoder"], max(given, 1), listens)
        codes = mx.where((heard & ~ended)[:, None], codes[:, :given, 0], self.step.lm.cfg.card)
        lm, out = self.step.run(
            state["lm"], codes, None if conditions is None else Conditions(**conditions), heard | fresh
        )
        speaks = (out.valid & heard)[:, None]
        reply, decoder = self._speak(mx.where(speaks, out.frame, 0), state["decoder"], speaks[:, 0])
        return {"lm": lm, "encoder": encoder, "decoder": decoder}, mx.where(speaks, reply, 0), out.frame

    def _speak(self, tokens: mx.array, state: dict, execute: mx.array | None = None) -> tuple[mx.array, dict]:
        """Sound `[B, 1920]` of a frame's tokens `[B, 1 + generated]`, and the decoder's state."""
        reply, state = self.mimi.decode_chunk(tokens[:, 1:, None], state, execute)
        return reply[:, 0], state

    def evaluated(
        self, state: dict, pcm: mx.array, steps: int, ended: mx.array | None = None
    ) -> tuple[dict, mx.array, mx.array]:
        """As a call, evaluated. The containers of `state` are emptied, so that its rings are written in place."""
        new, out, tokens = self(state, pcm, steps, ended)
        self.evaluate(state, new, out, tokens)
        return new, out, tokens

    def evaluate(self, old: dict, *new: Any) -> None:
        """Compute what a call gave. The containers of `old`, the state before, are emptied, so that its rings are written in place."""
        let_go(old)
        mx.eval(*new)
        if self.grown:
            # The smaller rings will not be needed again.
            mx.clear_cache()

    def warm_up(self, batch: int, ends: bool = False) -> None:
        """Run frames of silence on a state of their own through every size of the rings, with and without a reply.

        What frames need is compiled then, and nothing of it is left but that. `ends`: also frames that carry end markers, and
        those after them.
        """
        pcm, last, delay = (
            mx.zeros((batch, self.mimi.frame_size)),
            mx.ones((batch,), mx.bool_),
            self.step.clock.max_delay,
        )
        state = self.first(self.init_state([0] * batch))

        def run(steps: int) -> None:
            nonlocal state
            state = self.evaluated(state, pcm, steps)[0]
            if ends:
                for mark in (last, None):
                    state = self.evaluated(state, pcm, steps, mark)[0]
                state["encoder"] = self.mimi.init_encoder(batch)

        run(0)
        for position in self.step.growths(batch):
            run(max(position, delay))
        state = {}
        mx.clear_cache()

    def _with_room(self, state: dict, steps: int) -> dict:
        """The state with larger rings when they are full."""
        larger = self.step.larger_capacity(transformer.capacity_of(state["lm"]["trunk"]), steps)
        self.grown = larger is not None
        if larger is None:
            return state
        return {**state, "lm": {**state["lm"], "trunk": transformer.grow(state["lm"]["trunk"], larger)}}

    def _hear(self, state: dict, pcm: mx.array, ended: mx.array | None) -> tuple[mx.array, dict]:
        """The user's codes `[B, given]` of this frame: initial tokens where the user's side has ended. And the encoder's state."""
        given = self.step.clock.given
        execute = None
        if ended is not None and self.pause_at_end:
            state, execute = mimi_model.with_own_clocks(state, pcm.shape[0]), ~ended
        codes, state = self.mimi.encode_chunk(pcm[:, None], state, max(given, 1), execute)
        codes = codes[:, :given, 0]
        return codes if ended is None else mx.where(ended[:, None], self.step.lm.cfg.card, codes), state

    def hear(self, state: dict, pcm: mx.array, ended: mx.array | None = None) -> tuple[dict, mx.array, mx.array | None]:
        """A frame without its reply: new state, tokens `[B, 1 + dep_q]`, and for models with pause heads their probabilities `[B, heads]`."""
        codes, encoder = self._hear(state["encoder"], pcm, ended)
        lm, out = self.step.run(state["lm"], codes, self.conditions)
        state = {"lm": lm, "encoder": encoder, "decoder": copy_containers(state["decoder"])}
        heads = [p[:, 0, :1] for p in self.step.lm.heads(out.hidden)]
        return state, out.frame, mx.concatenate(heads, axis=-1) if heads else None

    def _listen(self, state: dict, pcm: mx.array, ended: mx.array | None = None) -> tuple[dict, mx.array, mx.array]:
        """A frame before the first reply is complete: nothing to decode."""
        state, tokens, _ = self.hear(state, pcm, ended)
        return state, mx.zeros_like(pcm), tokens

    def _frame(self, state: dict, pcm: mx.array, ended: mx.array | None = None) -> tuple[dict, mx.array, mx.array]:
        state, tokens, _ = self.hear(state, pcm, ended)
        reply, decoder = self._speak(tokens, state["decoder"])
        return {**state, "decoder": decoder}, reply, tokens
