"""Text in, frames of audio codes out: the language model, its text machines and its voice prefixes, step by step (family.md 2.4).

The text machine answers to the sampled text token before the depth transformer reads it, so a step has two evaluations:
one token read back in its middle, and its end. Everything else stays on the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from ..engine.generate import LmGen
from ..engine.step import Conditions, StepOutput
from ..engine.token_clock import UNGENERATED, ZERO
from ..models.lm_model import LmModel
from ..modules.sampling import Sampler
from .machine import State, StateMachine

ArrayHook = Callable[[mx.array], None]


class TokenGenerator:
    """A batch of utterances in lockstep.

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
        on_text_hook: ArrayHook | None = None,
        on_audio_hook: ArrayHook | None = None,
    ):
        self.lm, self.machine, self.states = lm, machine, list(states)
        self.delay_steps, self.final_padding = delay_steps, final_padding
        self.codebooks = lm.dep_q if codebooks is None else codebooks
        self.max_delay = lm.cfg.max_delay
        self.offset = 0
        self.text_complete = False
        self.logged_text_tokens: list[list[tuple[int, int]]] = [[] for _ in self.states]
        self.keep_log = False
        batch = len(self.states)
        self._prefixes = [np.zeros((1 + self.codebooks, 0), np.int64)] * batch
        if prefixes is not None:
            self._prefixes = [np.array(p)[: 1 + self.codebooks] for p in prefixes]
        self._on_text, self._on_audio = on_text_hook, on_audio_hook
        self._given = mx.full((batch, lm.n_q - self.codebooks), ZERO, mx.int32)
        self._starts = np.array(lm.delays[: self.codebooks]) + delay_steps
        self._forced = self._forced_audio()
        bonus = np.zeros(lm.cfg.text_out_vocab_size, np.float32)
        bonus[machine.token_ids.pad] = padding_bonus
        self._bonus = mx.array(bonus) if padding_bonus else None
        masked = None
        if cfg_coef != 1.0 and cfg_is_no_prefix and prefixes is not None:
            masked = [n + delay_steps for n in self.prefix_lengths]
        self._gen = LmGen(
            lm,
            text_sampler=text_sampler,
            audio_sampler=audio_sampler,
            batch_size=batch,
            cfg_coef=cfg_coef,
            cfg_is_no_text=cfg_is_no_text and cfg_coef != 1.0,
            cfg_is_masked_until=masked,
            on_text_logits_hook=self._logits_hook,
            on_text_hook=self._text_hook,
            on_audio_hook=self._audio_hook,
            generated_codebooks=self.codebooks,
            conditions=conditions,
            compile=compile,
            seed=seed,
        )

    @property
    def batch(self) -> int:
        return len(self.states)

    @property
    def prefix_lengths(self) -> list[int]:
        return [p.shape[1] for p in self._prefixes]

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
        """Whether a step would do what it would do if all the text were known (family.md 2.8)."""
        if self.text_complete:
            return True
        ahead = self.machine.second_stream_ahead
        return all(
            self.offset < len(prefix[0]) or not state.may_consume() or state.knows_enough(ahead)
            for prefix, state in zip(self._prefixes, self.states, strict=True)
        )

    @property
    def last_step(self) -> int | None:
        """Steps after which every utterance and its final padding are out; None while an end is unknown."""
        ends = [s.end_step for s in self.states]
        if None in ends:
            return None
        return max(e for e in ends if e is not None) + self.delay_steps + self.final_padding + self.max_delay

    @property
    def done(self) -> bool:
        last = self.last_step
        return last is not None and self.offset >= last

    def step(self) -> mx.array | None:
        """The frame `[B, 1 + codebooks]` now complete, text first, -1 where there is no audio yet; None while delays fill.

        Its index is `offset - 1 - max_delay`, `offset` counting this step. Not evaluated.
        """
        # Where every codebook is imposed, the depth transformer has nothing to say.
        forced = self._forced[self.offset] if self.offset < len(self._forced) else None
        replace = mx.array(forced) if forced is not None and (forced != UNGENERATED).all() else None
        self._gen.step(self._given, depformer_replace_tokens=replace)
        self.offset += 1
        return self._gen.frame if self._gen.has_frame else None

    def _forced_audio(self) -> np.ndarray:
        """Codes imposed at the first steps `[steps, B, codebooks]`: -1 until audio begins, then the prefix; -2 elsewhere."""
        longest = int(self._starts.max(initial=0)) + max(self.prefix_lengths)
        forced = np.full((longest, self.batch, self.codebooks), UNGENERATED, np.int32)
        for k, start in enumerate(self._starts):
            forced[:start, :, k] = ZERO
            for b, prefix in enumerate(self._prefixes):
                forced[start : start + prefix.shape[1], b, k] = prefix[1 + k]
        return forced

    def _logits_hook(self, logits: mx.array) -> mx.array:
        return logits if self._bonus is None else logits + self._bonus.astype(logits.dtype)

    def _text_hook(self, text: mx.array) -> mx.array:
        sampled = np.array(text)[:, 0]
        out = []
        for b, state in enumerate(self.states):
            token = int(sampled[b])
            prefix = self._prefixes[b][0]
            if self.offset < len(prefix):
                given = int(prefix[self.offset])
            else:
                given, _ = self.machine.process(self.offset, state, token)
            out.append(given)
            if self.keep_log:
                self.logged_text_tokens[b].append((token, given))
        tokens = mx.array(out, mx.int32)[:, None]
        if self._on_text is not None:
            self._on_text(tokens)
        return tokens

    def _audio_hook(self, audio: mx.array) -> mx.array:
        if self.offset < len(self._forced):
            forced = mx.array(self._forced[self.offset])[..., None]
            audio = mx.where(forced == UNGENERATED, audio, forced)
        if self._on_audio is not None:
            self._on_audio(audio)
        return audio
