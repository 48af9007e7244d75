"""Samplers (lm.md section 5): temperature, then top-k, top-p or min-p, then one draw by Gumbel noise.

A draw is `argmax(logits / temperature + noise)` over the kept entries, which is exact sampling from their softmax. The
noise comes from counters (seed of the row, step), never from a global generator, so a row of a batch draws what it would
draw alone and a restored conversation goes on identically.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..arguments import kind, number, whole
from ..errors import InputError

# Rows up to this length are ordered within one GPU thread block.
LONGEST_PIECE = 2048
# Of rows that are sampled each in its own way so many entries are ordered, whatever a row keeps of them.
MOST_KEPT = 512
# Logits divided by less overflow float32; no noise changes which of them is the largest long before that.
COLDEST = 1e-30


@dataclass
class Sampler:
    """How one stream is sampled. Greedy at temperature 0 (below 1e-30). `top_k` wins over `top_p`, which wins over `min_p`.

    The defaults are those of the published package for a bare `Sampler()`; generation defaults are in `LmGen`.
    Entries that tie with the last one kept are kept as well.
    """

    temp: float = 0.8
    top_p: float = 0.95
    top_k: int | None = None
    min_p: float = 0.0
    min_tokens_to_keep: int = 1
    logit_bias: dict[int, float] | None = None

    def __post_init__(self) -> None:
        number("the temperature", self.temp, 0)
        if self.top_k is not None:
            whole("top_k", self.top_k, 0)
        number("top_p", self.top_p, 0, 1)
        number("min_p", self.min_p, 0, 1)
        whole("min_tokens_to_keep", self.min_tokens_to_keep, 1)
        if self.logit_bias is not None:
            for token, bias in kind("logit_bias", self.logit_bias, dict, "a dict of tokens and numbers").items():
                whole("a token of logit_bias", token, 0)
                number(f"the bias of token {token}", bias)

    def check_fits(self, tokens: int, name: str) -> None:
        """Raise `InputError` where this speaks of tokens that a model with `tokens` of them does not have."""
        for token in self.logit_bias or ():
            whole(f"{name}: a token of logit_bias", token, 0, tokens - 1)

    @property
    def greedy(self) -> bool:
        return self.temp < COLDEST

    def kept(self, logits: mx.array) -> mx.array:
        """`logits [..., V]` divided by the temperature, float32, -inf where nothing may be drawn."""
        threshold = self._threshold(logits)
        scaled = logits.astype(mx.float32) / self.temp
        return scaled if threshold is None else mx.where(logits >= threshold, scaled, -mx.inf)

    def choose(self, logits: mx.array, noise: mx.array | None) -> mx.array:
        """Tokens `[...]` uint32 of `logits [..., V]`; `noise` is standard Gumbel of the same shape (unused when greedy)."""
        logits = self._biased(logits)
        if not self.greedy:
            assert noise is not None
            logits = self.kept(logits) + noise
        return mx.argmax(logits, axis=-1)

    def __call__(self, logits: mx.array) -> tuple[mx.array, mx.array]:
        """Token and log-probabilities with noise from MLX's global generator, for use outside of `LmGen`."""
        noise = None if self.greedy else mx.random.gumbel(logits.shape)
        token = self.choose(logits, noise).astype(mx.int32)
        wide = logits.astype(mx.float32)
        return token, wide - mx.logsumexp(wide, axis=-1, keepdims=True)

    def _biased(self, logits: mx.array) -> mx.array:
        if not self.logit_bias:
            return logits
        index = mx.array(list(self.logit_bias))
        return logits.astype(mx.float32).at[..., index].add(mx.array(list(self.logit_bias.values()), mx.float32))

    def _threshold(self, logits: mx.array) -> mx.array | None:
        """The smallest logit that may be drawn, `[..., 1]`."""
        vocabulary = logits.shape[-1]
        if self.top_k:
            return _kth_largest(logits, self.top_k) if self.top_k < vocabulary else None
        if 0 < self.top_p < 1:
            ordered = -mx.sort(-logits.astype(mx.float32), axis=-1)
            p = mx.softmax(ordered / self.temp, axis=-1)
            before = mx.cumsum(p, axis=-1) - p
            return mx.min(mx.where(before <= self.top_p, ordered, mx.inf), axis=-1, keepdims=True)
        if self.min_p > 0:
            wide = logits.astype(mx.float32)
            threshold = mx.max(wide, axis=-1, keepdims=True) + self.temp * math.log(self.min_p)
            if self.min_tokens_to_keep > 1:
                threshold = mx.minimum(threshold, _kth_largest(wide, min(self.min_tokens_to_keep, vocabulary)))
            return threshold
        return None


def _kth_largest(x: mx.array, k: int) -> mx.array:
    """The k-th largest of `x [..., V]`, `[..., 1]`."""
    return _k_largest(x, k)[..., :1]


def _k_largest(x: mx.array, k: int) -> mx.array:
    """The k largest of `x [..., V]`, `[..., k]`, the smallest of them first.

    A long row is first cut into pieces of which only the k largest stay: GPUs order short rows in one kernel, long ones in many.
    """
    size = x.shape[-1]
    piece = max((n for n in range(8 * k, LONGEST_PIECE + 1) if size % n == 0), default=size)
    if piece < size:
        best = mx.partition(x.reshape(*x.shape[:-1], -1, piece), piece - k, axis=-1)[..., piece - k :]
        x = best.reshape(*x.shape[:-1], -1)
    at = x.shape[-1] - k
    return mx.partition(x, at, axis=-1)[..., at:]


def row_values(samplers: Sequence[Sampler]) -> dict[str, mx.array]:
    """What `choose_by_row` takes of one sampler per row: `temp` float32 `[B]` and `top_k` int32 `[B]` (0: all).

    Rows differ in temperature and top-k alone. Raises `InputError` for a sampler with more.
    """
    for s in samplers:
        if s.logit_bias or s.min_p > 0 or (not s.top_k and 0 < s.top_p < 1):
            raise InputError(
                "rows of a batch are sampled by temperature and top-k alone; leave out top_p, min_p and logit_bias."
            )
        if (s.top_k or 0) > MOST_KEPT:
            raise InputError(f"top_k of a row should be 0 (everything) to {MOST_KEPT}, found {s.top_k}.")
    return {
        "temp": mx.array(np.array([s.temp for s in samplers], np.float32)),
        "top_k": mx.array(np.array([s.top_k or 0 for s in samplers], np.int32)),
    }


def choose_by_row(logits: mx.array, values: dict[str, mx.array], noise: mx.array) -> mx.array:
    """Tokens `[B]` uint32 of `logits [B, V]`, each row by its own `values`: what `Sampler.choose` gives for the row alone."""
    temp, top_k = values["temp"][:, None], values["top_k"][:, None]
    greedy = temp < COLDEST
    best = mx.sort(_k_largest(logits, min(MOST_KEPT, logits.shape[-1])), axis=-1)
    size = best.shape[-1]
    threshold = mx.take_along_axis(best, mx.clip(size - top_k, 0, size - 1), axis=-1)
    scaled = logits.astype(mx.float32) / mx.where(greedy, 1, temp)
    drawn = mx.where((logits >= threshold) | (top_k == 0), scaled, -mx.inf) + noise
    return mx.argmax(mx.where(greedy, scaled, drawn), axis=-1)


def gumbel(seeds: mx.array, step: mx.array, count: int) -> mx.array:
    """Standard Gumbel noise `[B, count]` of step `step` (`[]` or `[B]`) for rows with `seeds` uint32 `[B]`."""
    keys = mx.stack([seeds, mx.broadcast_to(step.astype(mx.uint32), seeds.shape)], axis=-1)
    if keys.shape[0] == 1:
        # Not keys[0], which would copy it.
        return mx.random.gumbel((1, count), key=keys.reshape(2))
    return mx.vmap(lambda key: mx.random.gumbel((count,), key=key))(keys)
