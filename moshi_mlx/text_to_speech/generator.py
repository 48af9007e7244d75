"""Text in, frames of audio codes out: the language model, its text machines and its voice prefixes, step by step (family.md 2.4).

The text machine answers to the sampled text token before the depth transformer reads it, so a step has two evaluations:
one token read back in its middle, and its end. Everything else stays on the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import mlx.core as mx
import numpy as np

from ..engine.generate import LmGen
from ..engine.row_state import Manner
from ..engine.step import Conditions, StepOutput
from ..engine.token_clock import UNGENERATED, ZERO
from ..models.lm_model import LmModel
from ..modules.sampling import Sampler
from .machine import State, StateMachine
from .utterance import Utterance, clipped, starts_of

ArrayHook = Callable[[mx.array], None]


class TokenGenerator:
    """A batch of utterances, in lockstep or, with `own_clocks`, each by itself: they join, stand still and leave.

    `states` has one entry per utterance; more text may be appended to its `entries` until `text_complete` is set. `prefixes`
    are clips to be continued, `[1 + codebooks, T]` each. `codebooks` below the model's `dep_q` saves time. Real guidance
    (`cfg_coef` other than 1) compares with rows that see no text (`cfg_is_no_text`) and no prefix (`cfg_is_no_prefix`).
    """

    def __init__(
        self,
        lm: LmModel,
        machine: StateMachine,
        states: Sequence[State],
        delay_steps: int,
        *,
        text_sampler: Sampler,
        audio_sampler: Sampler,
        conditions: Conditions | None = None,
        prefixes: Sequence[mx.array] | None = None,
        codebooks: int | None = None,
        cfg_coef: float = 1.0,
        cfg_is_no_text: bool = True,
        cfg_is_no_prefix: bool = True,
        padding_bonus: float = 0.0,
        final_padding: int = 4,
        seed: int | Sequence[int] | None = None,
        compile: bool = True,
        kv_bits: int | None = None,
        own_clocks: bool = False,
        on_text_hook: ArrayHook | None = None,
        on_audio_hook: ArrayHook | None = None,
    ):
        self.lm, self.machine = lm, machine
        self.delay_steps, self.final_padding = delay_steps, final_padding
        self.codebooks = lm.dep_q if codebooks is None else codebooks
        self.max_delay = lm.cfg.max_delay
        self.keep_log = False
        self.cfg_coef, self._no_prefix = cfg_coef, cfg_is_no_prefix
        clips = [None] * len(states) if prefixes is None else prefixes
        self.utterances = [self._utterance(state, clip) for state, clip in zip(states, clips, strict=True)]
        # Rows that make the step under way, and the codes imposed on it.
        self._stepped = np.ones(self.batch, bool)
        self._forced: np.ndarray | None = None
        self._on_text, self._on_audio = on_text_hook, on_audio_hook
        self._given = mx.full((self.batch, lm.n_q - self.codebooks), ZERO, mx.int32)
        bonus = np.zeros(lm.cfg.text_out_vocab_size, np.float32)
        bonus[machine.token_ids.pad] = padding_bonus
        self._bonus = mx.array(bonus) if padding_bonus and not own_clocks else None
        self._pad_bonus = padding_bonus
        masked = None
        if cfg_coef != 1.0 and cfg_is_no_prefix and prefixes is not None and not own_clocks:
            masked = [n + delay_steps for n in self.prefix_lengths]
        self.own_clocks = own_clocks
        self._gen = LmGen(
            lm,
            text_sampler=text_sampler,
            audio_sampler=audio_sampler,
            batch_size=self.batch,
            cfg_coef=cfg_coef,
            cfg_is_no_text=cfg_is_no_text and cfg_coef != 1.0,
            cfg_is_masked_until=masked,
            on_text_logits_hook=self._logits_hook,
            on_text_hook=self._text_hook,
            on_audio_hook=self._audio_hook,
            support_out_of_sync=own_clocks,
            generated_codebooks=self.codebooks,
            conditions=conditions,
            compile=compile,
            kv_bits=kv_bits,
            seed=seed,
            manners=[self._manner(u, Manner()) for u in self.utterances] if own_clocks else None,
        )

    def _utterance(self, state: State, prefix: mx.array | None) -> Utterance:
        starts = starts_of(self.lm.delays[: self.codebooks], self.delay_steps)
        return Utterance(state, clipped(prefix, self.codebooks), starts)

    def _manner(self, utterance: Utterance, wanted: Manner) -> Manner:
        """How a row is sampled and guided: as wanted, with what its prefix means for guidance."""
        masked = None
        if self.cfg_coef != 1.0 and self._no_prefix and utterance.prefix_length:
            masked = utterance.prefix_length + self.delay_steps
        return replace(wanted, masked_until=masked, pad_bonus=self._pad_bonus + wanted.pad_bonus)

    def join(
        self,
        row: int,
        state: State,
        prefix: mx.array | None = None,
        *,
        conditions: Conditions | None = None,
        manner: Manner | None = None,
        seed: int | None = None,
    ) -> None:
        """Begin an utterance in `row` (with `own_clocks`); nothing is left there of the one before."""
        utterance = self._utterance(state, prefix)
        self._gen.join(row, seed, self._manner(utterance, manner or Manner()), conditions)
        self.utterances[row] = utterance

    @property
    def batch(self) -> int:
        return len(self.utterances)

    @property
    def states(self) -> list[State]:
        """Text machines, one per utterance."""
        return [u.state for u in self.utterances]

    @property
    def prefix_lengths(self) -> list[int]:
        return [u.prefix_length for u in self.utterances]

    @property
    def logged_text_tokens(self) -> list[list[tuple[int, int]]]:
        """Of each utterance the sampled text token of every step and the one in its place, with `keep_log`."""
        return [u.logged for u in self.utterances]

    @property
    def offset(self) -> int:
        """Steps of the oldest utterance so far."""
        return max(u.offset for u in self.utterances)

    @property
    def text_complete(self) -> bool:
        """Whether no more text will come, for any utterance."""
        return all(u.text_complete for u in self.utterances)

    @text_complete.setter
    def text_complete(self, complete: bool) -> None:
        for u in self.utterances:
            u.text_complete = complete

    @property
    def state(self) -> dict:
        """Arrays that the last step left to be computed."""
        return self._gen.state

    @property
    def output(self) -> StepOutput:
        """Everything the last step gave."""
        return self._gen.output

    @property
    def ready(self) -> bool:
        """Whether a step of all would do what it would do if all the text were known (family.md 2.8)."""
        return all(self.ready_row(row) for row in range(self.batch))

    def ready_row(self, row: int) -> bool:
        """The same for one utterance."""
        return self.utterances[row].ready(self.machine.second_stream_ahead)

    @property
    def last_step(self) -> int | None:
        """Steps after which every utterance and its final padding are out; None while an end is unknown."""
        ends = [self.last_step_of(row) for row in range(self.batch)]
        known = [e for e in ends if e is not None]
        return max(known) if len(known) == len(ends) else None

    def last_step_of(self, row: int) -> int | None:
        """The same for one utterance."""
        end = self.utterances[row].state.end_step
        return None if end is None else end + self.delay_steps + self.final_padding + self.max_delay

    @property
    def done(self) -> bool:
        """Whether all utterances are out."""
        last = self.last_step
        return last is not None and self.offset >= last

    def done_row(self, row: int) -> bool:
        """Whether one utterance is out."""
        last = self.last_step_of(row)
        return last is not None and self.utterances[row].offset >= last

    def step(self, rows: Collection[int] | None = None) -> mx.array | None:
        """The frame `[B, 1 + codebooks]` now complete, text first, -1 where there is no audio yet; None while delays fill.

        `rows` (with `own_clocks`): only these make a step. Of a row, the frame's index is `offset - 1 - max_delay`, `offset`
        counting this step. Not evaluated.
        """
        self._stepped = np.ones(self.batch, bool) if rows is None else np.isin(np.arange(self.batch), list(rows))
        forced = np.stack([u.forced_audio() for u in self.utterances])
        self._forced = forced if (forced[self._stepped] != UNGENERATED).any() else None
        # Where every codebook is imposed, the depth transformer has nothing to say.
        imposed = self._forced is not None and (forced[self._stepped] != UNGENERATED).all()
        codes = mx.array(np.where(forced == UNGENERATED, 0, forced)) if imposed else None
        execute = self._stepped if self.own_clocks else None
        self._gen.step(self._given, execute=execute, depformer_replace_tokens=codes)
        for u, stepped in zip(self.utterances, self._stepped, strict=True):
            u.offset += bool(stepped)
        return self._gen.frame if self._gen.has_frame else None

    def _logits_hook(self, logits: mx.array) -> mx.array:
        return logits if self._bonus is None else logits + self._bonus.astype(logits.dtype)

    def _text_hook(self, text: mx.array) -> mx.array:
        sampled = np.array(text)[:, 0]
        out = [
            u.text(self.machine, int(sampled[b]), self.keep_log) if self._stepped[b] else self.machine.token_ids.pad
            for b, u in enumerate(self.utterances)
        ]
        tokens = mx.array(out, mx.int32)[:, None]
        if self._on_text is not None:
            self._on_text(tokens)
        return tokens

    def _audio_hook(self, audio: mx.array) -> mx.array:
        if self._forced is not None:
            forced = mx.array(self._forced)[..., None]
            audio = mx.where(forced == UNGENERATED, audio, forced)
        if self._on_audio is not None:
            self._on_audio(audio)
        return audio
