"""One step of the language model as a pure function (lm.md 3 to 6).

    state, out = step.run(state, given, ...)

`state` is a plain tree of arrays: `{"trunk": transformer state, "tokens", "offset", "seed"}`. It is a value: keep it to come
back to a moment or to fork a conversation. There is no step limit. Rows that come and go have a clock each (`offset [B]`) and
may have an `"own"` part: how each of them is sampled and guided, as arrays, so that a change is no new trace (see `row_state`).
With a repetition penalty there is also `"said"`: which text tokens were said when (see `modules.repetition`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from .. import arguments
from ..errors import InputError
from ..machine import device, memory
from ..models.lm_model import LmModel
from ..modules import repetition, transformer
from ..modules.conditioner import ConditionAttributes, fuse
from ..modules.repetition import RepetitionPenalty
from ..modules.sampling import Sampler, choose_by_row, gumbel
from .state import copy_containers
from .token_clock import UNGENERATED, ZERO, TokenClock

# Where rings grow, they start this large and double up to the model's window: attention then reads little more than was said.
FIRST_CAPACITY = 256
# Share of the GPU's memory that rings may take at once.
MOST_OF_MEMORY = 0.25

DEFAULT_TEXT_SAMPLER = Sampler(temp=0.7, top_k=25)
DEFAULT_AUDIO_SAMPLER = Sampler(temp=0.8, top_k=250)

# Sees the tokens (or logits) and may change them in place or return others.
Hook = Callable[[mx.array], Any]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (lm.md section 6). Rows of the trunk are the conditioned ones, then the null ones.

    `masked_until`: per conversation, null rows read -1 while o <= delay + this. `no_text`: null rows never read text and
    the text logits are the conditioned ones.
    """

    coef: float = 1.0
    masked_until: tuple[int, ...] | None = None
    no_text: bool = False

    def __post_init__(self) -> None:
        arguments.number("cfg_coef", self.coef)

    @property
    def active(self) -> bool:
        return self.coef != 1.0

    def mix(self, logits: mx.array, own: dict | None = None) -> mx.array:
        """`[2B, V]` -> `[B, V]`, in the model's own type; `own` holds a coefficient per row."""
        if not self.active:
            return logits
        conditioned, null = mx.split(logits, 2, axis=0)
        if own is None:
            return null + self.coef * (conditioned - null)
        coef = own["coef"][:, None]
        # A row without guidance is what it is alone, to the bit.
        return mx.where(coef == 1, conditioned, null + coef.astype(logits.dtype) * (conditioned - null))


@dataclass(frozen=True)
class Conditions:
    """Fused conditions of a conversation: `total [B', 1, d]` added to every input, `cross` keys and values `[2, B', H, S, D]` per layer.

    `cross_mask [B', 1, 1, S]` is true where a row's source is, if rows have sources of different lengths.
    """

    total: mx.array | None = None
    cross: list[mx.array] | None = None
    cross_mask: mx.array | None = None

    def tree(self) -> dict:
        """As plain containers, which a traced function can take."""
        return {"total": self.total, "cross": self.cross, "cross_mask": self.cross_mask}


@dataclass(frozen=True)
class StepOutput:
    """What a step gives. `frame [B, 1 + Dq]` is the un-delayed frame now complete, text first: -2 where `valid [B]` is false.

    `text [B]` and `audio [B, Dq]` are this step's own tokens, `hidden [B', 1, d]` the trunk's output.
    """

    frame: mx.array
    valid: mx.array
    text: mx.array
    audio: mx.array | None
    hidden: mx.array
    text_logits: mx.array


@dataclass(frozen=True)
class Hooks:
    text_logits: Hook | None = None
    text: Hook | None = None
    audio: Hook | None = None


def call_hook(hook: Hook | None, x: mx.array) -> mx.array:
    if hook is None:
        return x
    changed = hook(x)
    return x if changed is None else changed


class Step:
    """The step of one model with fixed options. Holds no conversation.

    `compile`: trace the step once per shape of the state and replay it as one graph, on rearranged weights (see `packed`). Without
    it every operation is made anew at every step on the weights as loaded: the reference, with the same tokens in float32.
    (In bfloat16 its sums are rounded elsewhere: the 17 embeddings are added one by one, not in one sum.)
    """

    def __init__(
        self,
        lm: LmModel,
        text_sampler: Sampler = DEFAULT_TEXT_SAMPLER,
        audio_sampler: Sampler = DEFAULT_AUDIO_SAMPLER,
        guidance: Guidance | None = None,
        generated: int | None = None,
        compile: bool = True,
        kv_bits: int | None = None,
        repetition_penalty: RepetitionPenalty | None = None,
    ):
        self.lm, self.kv_bits = lm, arguments.one_of("kv_bits", kv_bits, (4, 8, None))
        self.repetition_penalty = repetition_penalty
        if compile:
            lm.prepare()
            self._whole = mx.compile(self._whole)  # type: ignore[method-assign]
            self.temporal = mx.compile(self.temporal)  # type: ignore[method-assign]
            self.depth = mx.compile(self.depth)  # type: ignore[method-assign]
            self.commit = mx.compile(self.commit)  # type: ignore[method-assign]
        self.text_sampler = arguments.kind("text_sampler", text_sampler, Sampler, "a Sampler")
        self.audio_sampler = arguments.kind("audio_sampler", audio_sampler, Sampler, "a Sampler")
        self.guidance = guidance or Guidance()
        text_sampler.check_fits(lm.cfg.text_out_vocab_size, "text_sampler")
        audio_sampler.check_fits(lm.cfg.card, "audio_sampler")
        self.generated = lm.cfg.dep_q if generated is None else arguments.whole("generated_codebooks", generated)
        if not 0 <= self.generated <= lm.cfg.dep_q:
            raise InputError(f"this model generates up to {lm.cfg.dep_q} codebooks, {self.generated} were asked for.")
        self.clock = TokenClock(lm.cfg, self.generated)

    # State ------------------------------------------------------------------------------------------------------

    def capacities(self, batch: int) -> list[int]:
        """Sizes the rings of `batch` conversations go through: doubling from the first to the model's window (without bound, for ever).

        On a GPU they are as large as the window from the start, where memory allows: to grow means to move all of them within one frame
        (3.7 GB for Moshi 7B), which would be late, while a slot that is masked is not read there (attention of one query in MLX's Metal
        kernels). Packed keys and values are read whole, at every moment as in a long talk.
        """
        limit = self.lm.transformer.capacity()
        if limit is None:
            return [FIRST_CAPACITY]
        if device.on_gpu():
            rings = memory.ring_bytes(self.lm.cfg.transformer, self._trunk_rows(batch), self.lm.dtype)
            if rings <= MOST_OF_MEMORY * memory.device_bytes():
                return [limit]
        sizes = [FIRST_CAPACITY << i for i in range(limit.bit_length()) if FIRST_CAPACITY << i < limit]
        return [*sizes, limit]

    def growths(self, batch: int) -> list[int]:
        """Positions at which rings come to each of their sizes: whoever steps at all of them in turn has met every size."""
        return [0, *self.capacities(batch)[:-1]]

    def _trunk_rows(self, batch: int) -> int:
        return 2 * batch if self.guidance.active else batch

    def larger_capacity(self, capacity: int, position: int) -> int | None:
        """The size that rings of `capacity` need for `position`, None if they have room or are as large as the window."""
        limit = self.lm.transformer.capacity()
        if position < capacity or (limit is not None and capacity >= limit):
            return None
        return 2 * capacity if limit is None else min(2 * capacity, limit)

    def with_room(self, trunk: dict, position: int) -> dict:
        """The trunk's state with rings that are large enough for `position`, or as large as the window."""
        capacity = size = transformer.capacity_of(trunk)
        while (larger := self.larger_capacity(size, position)) is not None:
            size = larger
        return transformer.grow(trunk, size) if size > capacity else trunk

    def init_state(self, seeds: Sequence[int], capacity: int, lockstep: bool = True) -> dict:
        """State before the first step of `len(seeds)` conversations. `lockstep`: they always step together."""
        batch = len(seeds)
        state = {
            "trunk": self.lm.transformer.init_state(
                self._trunk_rows(batch), capacity, self.lm.dtype, lockstep, self.kv_bits
            ),
            "tokens": self.clock.init(batch),
            "offset": mx.zeros([] if lockstep else [batch], mx.int32),
            "seed": mx.array(np.array([s % 2**32 for s in seeds], np.uint32)),
        }
        if self.repetition_penalty is not None:
            state["said"] = repetition.init(batch, self.lm.cfg.text_out_vocab_size)
        return state

    # The step ---------------------------------------------------------------------------------------------------

    def run(
        self,
        state: dict,
        given: mx.array,
        conditions: Conditions | None = None,
        execute: mx.array | None = None,
        replace: mx.array | None = None,
        hooks: Hooks | None = None,
    ) -> tuple[dict, StepOutput]:
        """One frame.

        `given [B, n_q - generated]` int: the user's codes of this very frame (-1: none). `execute` bool `[B]`: rows where
        it is false leave no trace. `replace [B, generated]`: audio tokens to take instead of running the depth transformer.
        """
        tree = conditions.tree() if conditions is not None else None
        if hooks is None and replace is None:
            state, out = self._whole(state, given, tree, execute)
            return state, StepOutput(*out)
        hooks = hooks or Hooks()
        state, hidden, logits = self.temporal(state, given, tree, execute)
        logits = call_hook(hooks.text_logits, logits)
        text = call_hook(hooks.text, self.sample_text(state, logits)).astype(mx.int32)
        audio = None
        if self.generated:
            audio = replace if replace is not None else self.depth(state, hidden, text)
            audio = call_hook(hooks.audio, audio).astype(mx.int32)
        state, frame, valid = self.commit(state, text, audio, execute)
        return state, StepOutput(frame, valid, text, audio, hidden, logits)

    def _whole(
        self, state: dict, given: mx.array, conditions: dict | None, execute: mx.array | None
    ) -> tuple[dict, tuple]:
        """All parts of a step that nothing interferes with; the fields of its `StepOutput`."""
        state, hidden, logits = self.temporal(state, given, conditions, execute)
        text = self.sample_text(state, logits)
        audio = self.depth(state, hidden, text) if self.generated else None
        state, frame, valid = self.commit(state, text, audio, execute)
        return state, (frame, valid, text, audio, hidden, logits)

    def first(self, state: dict, conditions: Conditions | None) -> dict:
        """The first step of all rows: it reads initial tokens only, and of its own tokens only those without delay are ever used."""
        used = [k for k in range(self.generated) if self.lm.cfg.delays[1 + k] == 0]
        tree = conditions.tree() if conditions is not None else None
        given = mx.broadcast_to(mx.array(self.lm.cfg.card, mx.int32), (state["tokens"].shape[0], self.clock.given))
        state, hidden, logits = self.temporal(state, given, tree, None)
        text = self.sample_text(state, logits)
        audio = self.depth(state, hidden, text, max(used, default=0) + 1) if self.generated else None
        return self.commit(state, text, audio, None)[0]

    def temporal(
        self, state: dict, given: mx.array, conditions: dict | None, execute: mx.array | None
    ) -> tuple[dict, mx.array, mx.array]:
        """First part: user codes in, trunk -> state with the window moved on, hidden `[B', 1, d]`, text logits `[B, V]`."""
        clock, offset = self.clock, state["offset"]
        tokens = clock.insert(state["tokens"], given)
        if execute is not None:
            tokens = mx.where(execute[:, None, None], tokens, state["tokens"])
        inputs, is_initial = clock.read(tokens, offset)
        if execute is not None:
            inputs = mx.where(execute[:, None], inputs, clock.initial)
        hidden, trunk = self._trunk(state["trunk"], self._guided_rows(inputs, is_initial, state), conditions, execute)
        raw = self.lm.text_linear(hidden[:, 0])
        guided = self.guidance.active and self.guidance.no_text
        logits = raw[: raw.shape[0] // 2] if guided else self.guidance.mix(raw, state.get("own"))
        return {**state, "trunk": trunk, "tokens": tokens}, hidden, logits

    def sample_text(self, state: dict, logits: mx.array) -> mx.array:
        """Text tokens `[B]` from `logits [B, V]`."""
        own, penalty = state.get("own"), self.repetition_penalty
        if penalty is not None:
            values = repetition.row_values([penalty]) if own is None else own["repetition"]
            logits = repetition.apply(logits, state["said"], values)
        if own is not None:
            drawn = gumbel(state["seed"], 2 * state["offset"], logits.shape[-1])
            is_pad = mx.arange(logits.shape[-1]) == self.lm.cfg.padding_token
            logits = logits + mx.where(is_pad, own["pad_bonus"][:, None], 0).astype(logits.dtype)
            return choose_by_row(logits, own["text"], drawn).astype(mx.int32)
        noise = None if self.text_sampler.greedy else gumbel(state["seed"], 2 * state["offset"], logits.shape[-1])
        return self.text_sampler.choose(logits, noise).astype(mx.int32)

    def depth(self, state: dict, hidden: mx.array, text: mx.array, count: int | None = None) -> mx.array:
        """Second part: this frame's audio tokens `[B, generated]` from the trunk's output and the text token (-1: none).

        Only the first `count` codebooks are generated, where the others are known to be of no use; they read 0.
        """
        count = self.generated if count is None else count
        cfg, guided, own = self.lm.cfg, self.guidance.active, state.get("own")
        tokens: list[mx.array] = []
        noise: list = [None] * count
        if own is not None or not self.audio_sampler.greedy:
            # Drawn at once, and sized by the model: leaving out codebooks changes no draw.
            every = gumbel(state["seed"], 2 * state["offset"] + 1, cfg.dep_q * cfg.card)
            noise = list(mx.split(every, cfg.dep_q, axis=-1))

        def choose(k: int, logits: mx.array) -> mx.array:
            mixed = self.guidance.mix(logits, own)
            if own is None:
                token = self.audio_sampler.choose(mixed, noise[k])
            else:
                token = choose_by_row(mixed, own["audio"], noise[k])
            tokens.append(token)
            return mx.concatenate([token, token]) if guided else token

        first = mx.concatenate([text, text]) if guided else text
        self.lm.depformer(hidden, first, choose, count, chosen=True)
        tokens += [mx.zeros_like(tokens[0])] * (self.generated - count)
        return mx.stack(tokens, axis=1).astype(mx.int32)

    def commit(
        self, state: dict, text: mx.array, audio: mx.array | None, execute: mx.array | None
    ) -> tuple[dict, mx.array, mx.array]:
        """Last part: write the frame's tokens -> state of the next step, un-delayed frame `[B, 1 + generated]`, its validity `[B]`."""
        clock, offset = self.clock, state["offset"]
        tokens = clock.commit(state["tokens"], text, audio)
        advanced = offset + 1
        valid = mx.broadcast_to(advanced > clock.max_delay, text.shape)
        if execute is not None:
            tokens = mx.where(execute[:, None, None], tokens, state["tokens"])
            advanced = mx.where(execute, advanced, offset)
            valid = (advanced > clock.max_delay) & execute
        frame = mx.where(valid[:, None], clock.returned(tokens), UNGENERATED)
        state = copy_containers(state)
        if self.repetition_penalty is not None:
            silent = self.lm.cfg.padding_token, self.lm.cfg.end_padding_token
            is_piece = (text != silent[0]) & (text != silent[1])
            is_piece = is_piece if execute is None else is_piece & execute
            state["said"] = repetition.after(state["said"], text, is_piece)
        # No container of the old state goes on in the new one: the caller may empty the old one.
        return {**state, "tokens": tokens, "offset": advanced}, frame, valid

    def _guided_rows(self, inputs: mx.array, is_initial: mx.array, state: dict) -> mx.array:
        """`[B, K]` -> `[B', K]`: with guidance the null rows follow, with what they must not see set to -1."""
        g, offset = self.guidance, state["offset"]
        if not g.active:
            return inputs
        null = inputs
        until = None if g.masked_until is None else mx.array(g.masked_until, mx.int32)
        until = state["own"]["masked_until"] if "own" in state else until
        if until is not None:
            limit = self.clock.delays + until[:, None]
            first = offset if offset.ndim == 0 else offset[:, None]
            null = mx.where((first <= limit) & ~is_initial, ZERO, null)
        if g.no_text:
            is_text = mx.arange(inputs.shape[1]) == 0
            null = mx.where(is_text & ~is_initial, ZERO, null)
        return mx.concatenate([inputs, null], axis=0)

    def _trunk(self, trunk: dict, rows: mx.array, tree: dict | None, execute: mx.array | None) -> tuple[mx.array, dict]:
        conditions = Conditions(**(tree or {}))
        self._check_guided(conditions, rows.shape[0])
        x = self.lm.embed(rows)
        if conditions.total is not None:
            x = x + conditions.total.astype(x.dtype)
        if execute is not None and self.guidance.active:
            execute = mx.concatenate([execute, execute])
        return self.lm.trunk(x, trunk, conditions.cross, execute, conditions.cross_mask)

    def _check_guided(self, conditions: Conditions, rows: int) -> None:
        """Guidance compares two halves of a batch: without something that differs it would be an expensive nothing."""
        g = self.guidance
        if not g.active or g.no_text or g.masked_until is not None:
            return
        batches = [] if conditions.total is None else [conditions.total.shape[0]]
        if conditions.cross is not None:
            batches.append(conditions.cross[0].shape[1])
        if rows not in batches:
            advice = "" if self.lm.cfg.conditioners else " This model has no conditions: leave guidance out."
            raise InputError(
                f"guidance (cfg_coef {g.coef}) needs conditions for {rows} rows, the conditioned ones and then the null ones.{advice}"
            )


def cross_keys_values(lm: LmModel, source: mx.array) -> list[mx.array]:
    """Keys and values of every layer for a cross-attention source `[B', S, d]`, evaluated."""
    pairs = lm.transformer.cross_keys_values(source.astype(lm.dtype))
    mx.eval(pairs)
    return pairs


def make_conditions(lm: LmModel, attributes: Sequence[ConditionAttributes]) -> Conditions:
    """Conditions of a batch from one entry per row of the trunk: B, or 2B with guidance (conditioned first)."""
    if lm.cfg.fuser is None:
        if any(a.text or a.tensor for a in attributes):
            raise InputError("this model takes no conditions.")
        return Conditions()
    provided = lm.condition_provider.provide(attributes) if lm.condition_provider is not None else {}
    total, source = fuse(lm.cfg.fuser, provided)
    return Conditions(total, None if source is None else cross_keys_values(lm, source))
