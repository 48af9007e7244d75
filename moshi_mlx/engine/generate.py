"""`LmGen`: a batch of conversations with a language model, their state and their stepping (lm.md 3 to 6)."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .. import arguments
from ..errors import InputError
from ..machine.owner import Owner
from ..models.lm_model import LmModel
from ..modules import transformer
from ..modules.conditioner import ConditionTensor, add_cross_positions
from ..modules.repetition import RepetitionPenalty
from ..modules.sampling import Sampler
from . import row_state
from .row_state import Manner
from .state import copy_containers, let_go
from .state_check import check_step_state
from .step import (
    DEFAULT_AUDIO_SAMPLER,
    DEFAULT_TEXT_SAMPLER,
    Conditions,
    Guidance,
    Hook,
    Hooks,
    Step,
    StepOutput,
    call_hook,
    cross_keys_values,
)
from .token_clock import UNGENERATED, ZERO


class LmGen:
    """A batch of conversations with one model: holds their state and steps it.

    `max_steps` is accepted for scripts of the published package and is no limit. Without `batch_size` there is one
    conversation and hooks see `text [1]` and `audio [dep_q]`; with it they see `text [B, 1]` and `audio [B, dep_q, 1]`.
    `support_out_of_sync` gives every row its own clock, which `execute` masks, `reset` of single rows and `join` need; with `manners`
    every row is also sampled and guided in its own way.
    Not thread-safe: one thread makes, steps and reads it.
    """

    def __init__(
        self,
        model: LmModel,
        max_steps: int | None = None,
        text_sampler: Sampler | None = None,
        audio_sampler: Sampler | None = None,
        batch_size: int | None = None,
        cfg_coef: float = 1.0,
        check: bool = False,
        on_text_hook: Hook | None = None,
        on_audio_hook: Hook | None = None,
        on_text_logits_hook: Hook | None = None,
        *,
        cfg_is_masked_until: Sequence[int] | None = None,
        cfg_is_no_text: bool = False,
        support_out_of_sync: bool = False,
        generated_codebooks: int | None = None,
        conditions: Conditions | None = None,
        compile: bool = True,
        kv_bits: int | None = None,
        seed: int | Sequence[int] | None = None,
        manners: Sequence[Manner] | None = None,
        repetition_penalty: RepetitionPenalty | None = None,
    ):
        self.model, self._owner = model, Owner("this generator")
        self.batch_size = 1 if batch_size is None else arguments.whole("batch_size", batch_size, 1)
        self.max_steps, self.check = max_steps, check
        # Rows that come and go bring conditions of their own.
        self.conditions = (
            row_state.for_rows(conditions) if conditions is not None and support_out_of_sync else conditions
        )
        masked = None if cfg_is_masked_until is None else tuple(cfg_is_masked_until)
        self._step = Step(
            model,
            text_sampler or DEFAULT_TEXT_SAMPLER,
            audio_sampler or DEFAULT_AUDIO_SAMPLER,
            Guidance(cfg_coef, masked, cfg_is_no_text),
            generated_codebooks,
            compile,
            kv_bits,
            repetition_penalty,
        )
        if masked is not None and len(masked) != self.batch_size:
            raise InputError(f"cfg_is_masked_until should have {self.batch_size} entries, found {len(masked)}.")
        self._hooks = None
        if on_text_logits_hook or on_text_hook or on_audio_hook:
            text_hook = _published_text_hook(on_text_hook, batch_size)
            self._hooks = Hooks(on_text_logits_hook, text_hook, _published_audio_hook(on_audio_hook, batch_size))
        self._lockstep = not support_out_of_sync
        if manners is not None and (self._lockstep or len(manners) != self.batch_size):
            raise InputError(f"manners are given for each of {self.batch_size} rows, with support_out_of_sync=True.")
        self.manners = None if manners is None else list(manners)
        self._cross_source: mx.array | None = None
        self.seeds = self._seeds(seed)
        self.reset()

    def _seeds(self, seed: int | Sequence[int] | None) -> list[int]:
        if seed is None:
            # Follows mx.random.seed, so that scripts which call it stay reproducible.
            seed = int(np.array(mx.random.randint(0, 2**31 - 1)))
        return arguments.seeds(seed, self.batch_size)

    # State ------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> dict:
        """The conversations as a plain tree of arrays: a value that later steps leave alone."""
        return copy_containers(self._state)

    @state.setter
    def state(self, state: dict) -> None:
        """Continue from there. What is no state of this model with these options is an `InputError`, and nothing changes."""
        self.continue_from(state)

    def continue_from(self, state: dict, decoded: bool = False) -> None:
        """As setting `state`; `decoded`: frames go to a codec, which knows no special tokens."""
        with self._owner:
            self._put(check_step_state(self._step, state, self.batch_size, self._lockstep, decoded, self.manners))

    def _put(self, state: dict) -> None:
        self._state = state
        self._steps = np.array(np.broadcast_to(np.array(state["offset"]), self.batch_size), int)
        self._out: StepOutput | None = None

    def reset(self, rows: Sequence[bool] | mx.array | None = None, seed: int | Sequence[int] | None = None) -> None:
        """Start over: all conversations, or those where `rows` is true (with `support_out_of_sync`).

        `seed` replaces the seeds: one for each conversation that starts over, or a number counted up from the first of them.
        """
        everybody = rows is None
        which = np.flatnonzero(np.ones(self.batch_size) if everybody else arguments.mask("rows", rows, self.batch_size))
        if rows is not None and self._lockstep:
            raise InputError("resetting single conversations needs support_out_of_sync=True.")
        if seed is not None:
            for row, new in zip(which, arguments.seeds(seed, len(which)), strict=True):
                self.seeds[row] = new
        if rows is not None:
            for row in which.tolist():
                self.join(row)
            return
        with self._owner:
            self._put(self._begin(self.seeds))

    def _begin(self, seeds: Sequence[int]) -> dict:
        """The state before the first step of all conversations."""
        capacity = self._step.capacities(len(seeds))[0]
        if self._lockstep:
            return self._step.init_state(seeds, capacity)
        return row_state.init_state(self._step, seeds, capacity, self.manners)

    def join(
        self, row: int, seed: int | None = None, manner: Manner | None = None, conditions: Conditions | None = None
    ) -> None:
        """Begin a conversation in row `row` (with `support_out_of_sync`); nothing is left there of the one before.

        Seed, manner and conditions (of one row, with guidance of two) replace those of the row; what is None stays as it was.
        """
        if self._lockstep:
            raise InputError("a row that joins needs support_out_of_sync=True.")
        if conditions is not None and self.conditions is None:
            raise InputError("conditions of a row need a batch that was made with conditions.")
        if manner is not None and self.manners is None:
            raise InputError("a row sampled in its own way needs a batch that was made with manners.")
        row = arguments.whole("a row", row, 0, self.batch_size - 1)
        seed = self.seeds[row] if seed is None else arguments.whole("seed", seed)
        if self.manners is not None and manner is None:
            manner = self.manners[row]
        with self._owner:
            self._replace(row, seed, manner, conditions)

    def _replace(self, row: int, seed: int, manner: Manner | None, conditions: Conditions | None) -> None:
        old = self._state
        one = row_state.one_row(self._step, transformer.capacity_of(old["trunk"]), seed, manner)
        # Only now: what was refused changes nothing.
        self.seeds[row] = seed
        if self.manners is not None and manner is not None:
            self.manners[row] = manner
        self._state = row_state.put_row(self._step, old, one, row)
        let_go(old)
        if conditions is not None and self.conditions is not None:
            at = row_state.row_indices(self._step, row, self.batch_size)
            self.conditions = row_state.put_conditions(self.conditions, conditions, at)
        self._steps[row], self._out = 0, None
        mx.eval(self._state)

    def warm_up(self) -> None:
        """Step through every size of the rings on a state of its own, without hooks: what steps need is compiled then."""
        given = mx.zeros((self.batch_size, self._step.clock.given), mx.int32)
        state = self._begin([0] * self.batch_size)
        for position in self._step.growths(self.batch_size):
            state = self._with_room(state, position)
            new, out = self._step.run(state, given, self.conditions)
            let_go(state)
            state = new
            mx.eval(state, out.frame, out.hidden, out.text_logits)
        state = {}
        mx.clear_cache()

    def _with_room(self, state: dict, position: int) -> dict:
        """The state with room for `position`."""
        larger = self._step.larger_capacity(transformer.capacity_of(state["trunk"]), position)
        return state if larger is None else {**state, "trunk": transformer.grow(state["trunk"], larger)}

    # Stepping ---------------------------------------------------------------------------------------------------

    def step(
        self,
        other_audio_tokens: mx.array | np.ndarray,
        ct: ConditionTensor | None = None,
        cross_attention_src: mx.array | None = None,
        *,
        execute: Sequence[bool] | np.ndarray | mx.array | None = None,
        depformer_replace_tokens: mx.array | None = None,
    ) -> mx.array:
        """One frame: the user's codes `[B, n]` or `[B, n, 1]`, of one conversation also `[n]`, of this frame (surplus ones are dropped) ->
        text `[B, 1]`.

        The returned text token is this step's own; `frame` and `last_audio_tokens` give the un-delayed frame. `ct` and
        `cross_attention_src` are conditions as the published package passes them.
        """
        card = self.model.cfg.card
        given = mx.array(arguments.tokens("user codes", other_audio_tokens, ZERO, card), mx.int32)
        if depformer_replace_tokens is not None:
            imposed = arguments.tokens(
                "tokens in place of the depth transformer's", depformer_replace_tokens, UNGENERATED, card
            )
            if imposed.size != self.batch_size * self._step.generated:
                raise InputError(
                    f"tokens in place of the depth transformer's should be [{self.batch_size}, {self._step.generated}], found {list(imposed.shape)}."
                )
            depformer_replace_tokens = mx.array(imposed, mx.int32).reshape(self.batch_size, -1)
        return self.advance(given, ct, cross_attention_src, execute=execute, replace=depformer_replace_tokens)

    def advance(
        self,
        given: mx.array,
        ct: ConditionTensor | None = None,
        cross_attention_src: mx.array | None = None,
        *,
        execute: Sequence[bool] | np.ndarray | mx.array | None = None,
        replace: mx.array | None = None,
    ) -> mx.array:
        """As `step`, for codes that a codec of the package has just made: nothing waits for them, and they are not looked at."""
        with self._owner:
            given = self._given(given)
            stepped = np.ones(self.batch_size, bool)
            if execute is not None:
                if self._lockstep:
                    raise InputError("execution masks need support_out_of_sync=True.")
                stepped = arguments.mask("execute", execute, self.batch_size)
                execute = mx.array(stepped)
            self._state = self._with_room(self._state, self.steps)
            conditions = self._call_conditions(ct, cross_attention_src)
            old = self._state
            self._state, self._out = self._step.run(old, given, conditions, execute, replace, self._hooks)
            self._steps += stepped
            let_go(old)
            # Begun now, so that reading any part of it later waits for one evaluation and starts none. That rings are written in place all
            # the same hangs on a detail of MLX: on Metal the old ring is somebody's until the command buffer that read it is done, so a step
            # has to be many buffers long (about 11; Moshi 7B's has 43). Much larger buffers (MLX_MAX_OPS_PER_BUFFER) or a tiny model make it
            # copy every ring; `bench --tune` looks for that.
            mx.async_eval(self._state, [x for x in vars(self._out).values() if x is not None])
            return self._out.text[:, None]

    def step_with_extra_heads(
        self,
        other_audio_tokens: mx.array | np.ndarray,
        ct: ConditionTensor | None = None,
        cross_attention_src: mx.array | None = None,
    ) -> tuple[mx.array, list[mx.array]]:
        """As `step`, with the probabilities `[B', 1, extra_heads_dim]` of each extra head."""
        text = self.step(other_audio_tokens, ct, cross_attention_src)
        return text, self.extra_heads()

    def extra_heads(self) -> list[mx.array]:
        """Probabilities of the extra heads at the last step."""
        return self.model.heads(self._last().hidden)

    @property
    def zero_token(self) -> int:
        """The token that embeds as zero and is never replaced by a generated one."""
        return ZERO

    @property
    def ungenerated_token(self) -> int:
        """The token that stands where nothing has been generated yet."""
        return UNGENERATED

    @property
    def steps(self) -> int:
        """Steps of the longest conversation so far."""
        return int(self._steps.max())

    def steps_of(self, row: int) -> int:
        """Steps of conversation `row` since it began."""
        return int(self._steps[arguments.whole("a row", row, 0, self.batch_size - 1)])

    @property
    def frame(self) -> mx.array:
        """The frame `[B, 1 + generated]` completed by the last step, text first; -2 where there is none yet."""
        return self._last().frame

    @property
    def has_frame(self) -> bool:
        """Whether the last step completed a frame of the longest conversation; `output.valid` tells it of each."""
        return self._out is not None and self.steps > self._step.clock.max_delay

    @property
    def output(self) -> StepOutput:
        """Everything the last step gave."""
        return self._last()

    def last_audio_tokens(self) -> mx.array | None:
        """Audio codes `[B, generated]` of the frame completed by the last step; None while the delays fill."""
        return self.frame[:, 1:] if self.has_frame and self._step.generated else None

    def _last(self) -> StepOutput:
        if self._out is None:
            raise InputError("there has been no step yet.")
        return self._out

    def _given(self, codes: mx.array) -> mx.array:
        needed = self._step.clock.given
        if codes.ndim == 3:
            codes = codes[..., 0]
        elif codes.ndim == 1:
            codes = codes[None]
        if codes.ndim != 2 or codes.shape[0] != self.batch_size or codes.shape[1] < needed:
            raise InputError(f"user codes should have shape [{self.batch_size}, {needed}], found {list(codes.shape)}.")
        return codes[:, :needed].astype(mx.int32)

    def _call_conditions(self, ct: ConditionTensor | None, source: mx.array | None) -> Conditions | None:
        """Conditions given to `step` itself, else those of the constructor. A source is projected once."""
        if ct is None and source is None:
            return self.conditions
        total = None
        if ct is not None:
            total = ct.tensor[:, None] if ct.tensor.ndim == 2 else ct.tensor
        if source is not None and source is not self._cross_source:
            self._cross_source = source
            self._cross = cross_keys_values(self.model, add_cross_positions(self.model.cfg.fuser, source))
        return Conditions(total, self._cross if source is not None else None)


def _published_text_hook(hook: Hook | None, batch_size: int | None) -> Hook | None:
    """Text hooks of the published package see `[1]` without a batch size and `[B, 1]` with one."""
    if hook is None or batch_size is None:
        return hook

    def wrapped(text: mx.array) -> mx.array:
        return call_hook(hook, text[:, None])[:, 0]

    return wrapped


def _published_audio_hook(hook: Hook | None, batch_size: int | None) -> Hook | None:
    """Audio hooks of the published package see `[dep_q]` without a batch size and `[B, dep_q, 1]` with one."""
    if hook is None:
        return None

    def wrapped(audio: mx.array) -> mx.array:
        if batch_size is None:
            return call_hook(hook, audio[0])[None]
        return call_hook(hook, audio[..., None])[..., 0]

    return wrapped
