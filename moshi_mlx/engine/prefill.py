"""Prompts whose every token is known, read in a few large passes instead of one step per frame, with the same result.

Where all channels are given, the inputs of the temporal transformer are known in advance and nothing has to be sampled: only
the last position of the prompt, where the model's own tokens begin, is an ordinary step.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..config.parts import LmConfig
from ..errors import InputError
from .step import Hooks, Step
from .token_clock import UNGENERATED

# Positions per pass: large enough to be limited by arithmetic, small enough that attention's scores stay small.
CHUNK = 512


@dataclass(frozen=True)
class Forced:
    """What the first positions of a conversation hold.

    `tokens [K, P]` int32 at model positions, delays applied and position 0 included: -2 where the model is free.
    `embeddings [m, d]`, if given, stand for the inputs of the first m positions, whose tokens need not be known.
    """

    tokens: np.ndarray
    embeddings: mx.array | None = None

    @property
    def length(self) -> int:
        """Leading positions at which nothing is free: model steps until the conversation begins."""
        known = (self.tokens != UNGENERATED).all(axis=0)
        known[: self.embedded] = True
        return int(np.argmin(known)) if not known.all() else len(known)

    @property
    def embedded(self) -> int:
        return 0 if self.embeddings is None else self.embeddings.shape[0]


def delayed(cfg: LmConfig, frames: np.ndarray) -> np.ndarray:
    """Un-delayed `frames [n, K]` -> tokens `[K, n + M]` at positions, -2 where no frame says anything.

    A token of frame j on a channel with delay d lies at position j + d. Up to position d a channel reads its initial token, so
    frame 0 is never seen (family.md 0.2 and 5.2).
    """
    tokens = np.full((cfg.num_channels, len(frames) + cfg.max_delay), UNGENERATED, np.int32)
    for c, (delay, initial) in enumerate(zip(cfg.delays, cfg.initial_tokens, strict=True)):
        tokens[c, delay : delay + len(frames)] = frames[:, c]
        tokens[c, : delay + 1] = initial
    return tokens


def run(step: Step, forced: Forced, seeds: Sequence[int]) -> dict:
    """The state after `forced.length` steps of `len(seeds)` conversations: what steps with imposed tokens would leave.

    A prompt may be longer than the attention window, which then has moved on.
    """
    return _result(in_pieces(step, forced, seeds))


def in_pieces(
    step: Step,
    forced: Forced,
    seeds: Sequence[int],
    size: int = CHUNK,
    own: dict | None = None,
    rows: int | None = None,
) -> Generator[None, None, dict]:
    """The same in passes of `size` positions, between which something else may be done; `own` as in a state (see `row_state`).

    `rows`: of the batch that the state is for, unless it is itself the batch. Its rings then go through the sizes of those.
    """
    state = yield from _read_in_pieces(step, forced, seeds, size, rows or len(seeds))
    state = state if own is None else {**state, "own": own}
    state = last_step(step, forced, state)
    mx.eval(state)
    return state


def read(step: Step, forced: Forced, seeds: Sequence[int]) -> dict:
    """The state before the last step of the prompt, which is the first to draw anything: it is the same for all seeds but for them."""
    return _result(_read_in_pieces(step, forced, seeds, CHUNK, len(seeds)))


def _read_in_pieces(
    step: Step, forced: Forced, seeds: Sequence[int], size: int, rows: int
) -> Generator[None, None, dict]:
    clock, last = step.clock, forced.length - 1
    if clock.max_delay > 1 or step.guidance.active:
        raise InputError("prompts are read at once by models with delays of at most one frame, without guidance.")
    if last < forced.embedded:
        raise InputError("a prompt given as embeddings has to be followed by at least one frame of tokens.")
    state = step.init_state(seeds, _capacity(step, forced.length, rows))
    trunk = state["trunk"]
    for start in range(0, last, size):
        trunk = _read(step, forced, trunk, start, min(start + size, last), len(seeds))
        yield
    window = mx.broadcast_to(mx.array(_window(step, forced.tokens, last)), state["tokens"].shape)
    return {**state, "trunk": trunk, "tokens": window, "offset": mx.array(last, mx.int32)}


def _result(pieces: Generator[None, None, dict]) -> dict:
    """What the pieces come to, all done at once."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value


def _capacity(step: Step, length: int, rows: int) -> int:
    """Slots for the prompt, by the sizes that rings go through while stepping."""
    capacity = step.capacities(rows)[0]
    while (larger := step.larger_capacity(capacity, length - 1)) is not None:
        capacity = larger
    return capacity


def _read(step: Step, forced: Forced, trunk: dict, start: int, end: int, batch: int) -> dict:
    """The temporal transformer over positions `start` .. `end` - 1, evaluated."""
    lm, embedded = step.lm, forced.embedded
    parts = []
    if start < embedded:
        assert forced.embeddings is not None
        parts.append(forced.embeddings[start : min(end, embedded)].astype(lm.dtype)[None])
    if end > embedded:
        parts.append(lm.embed(mx.array(forced.tokens[None, :, max(start, embedded) : end])))
    x = mx.concatenate(parts, axis=1)
    _, trunk = lm.trunk(mx.broadcast_to(x, (batch, *x.shape[1:])), trunk)
    mx.eval(trunk)
    return trunk


def _window(step: Step, tokens: np.ndarray, position: int) -> np.ndarray:
    """Recent tokens `[K, columns]` as they are when the step at `position` begins (see `TokenClock`)."""
    clock = step.clock
    window = np.full((clock.channels, clock.columns), UNGENERATED, np.int32)
    delays = np.array(step.lm.cfg.delays)
    # Own tokens are written one position ahead, the user's up to their delay: frame `position` is yet to come.
    newest = np.full(clock.channels, position)
    newest[1 + clock.generated :] = position - 1 + delays[1 + clock.generated :]
    for column in range(clock.columns):
        at = position - clock.max_delay + column
        if 0 <= at < tokens.shape[1]:
            window[:, column] = np.where(newest >= at, tokens[:, at], UNGENERATED)
    return window


def last_step(step: Step, forced: Forced, state: dict) -> dict:
    """The prompt's last step, whose tokens are partly the prompt's, partly the model's first own ones; nothing is evaluated."""
    clock, delays, batch = step.clock, step.lm.cfg.delays, state["tokens"].shape[0]
    tokens, position = forced.tokens, forced.length - 1
    user = range(1 + clock.generated, clock.channels)
    given = mx.array([[int(tokens[c, position + delays[c]]) for c in user]] * batch, mx.int32).reshape(batch, len(user))
    imposed = tokens[:, position + 1] if position + 1 < tokens.shape[1] else np.full(clock.channels, UNGENERATED)
    own = imposed[1 : 1 + clock.generated]
    free = own == UNGENERATED
    if free[np.argmin(free) :].any() and not free.all():
        raise InputError("a prompt is read at once only where the model's free codebooks come before the imposed ones.")

    def impose(wanted: np.ndarray):
        known, values = mx.array(wanted != UNGENERATED), mx.array(wanted.astype(np.int32))
        return lambda sampled: mx.where(known, values, sampled)

    hooks = Hooks(text=impose(imposed[:1]), audio=impose(own))
    return step.run(state, given, hooks=hooks)[0]
