"""A sampler whose temperature and top-k are inputs of a traced step: one graph for every way to sample."""

from __future__ import annotations

import mlx.core as mx

from ..modules.sampling import Sampler, largest

# Of a long row only this many of its largest entries are kept to look for the k-th.
MAX_TOP_K = 250


class InputSampler(Sampler):
    """Draws what a `Sampler` with the same numbers draws. `temp` float32 `[]`, 0 or less for greedy; `top_k` int32 `[]`, 0 for all.

    `limit` is the largest top-k below `vocabulary`, which means all, that rows of `vocabulary` logits can be asked for.
    """

    def __init__(self, vocabulary: int, temp: float, top_k: int, max_top_k: int = MAX_TOP_K):
        super().__init__(temp=temp, top_p=0, top_k=top_k)
        self._max_top_k = min(max_top_k, vocabulary)
        self._vocabulary = vocabulary
        row = mx.zeros((1, vocabulary))
        self.limit = vocabulary if largest(row, self._max_top_k).shape[-1] == vocabulary else self._max_top_k
        self.inputs = {"temp": mx.array(temp, mx.float32), "top_k": mx.array(top_k, mx.int32)}

    @property
    def greedy(self) -> bool:
        """Not known when the step is traced: noise is always drawn, and left out by `choose`."""
        return False

    def choose(self, logits: mx.array, noise: mx.array | None) -> mx.array:
        assert noise is not None
        temp, top_k = self.inputs["temp"], self.inputs["top_k"]
        greedy = temp <= 0
        candidates = mx.sort(largest(logits, self._max_top_k), axis=-1)
        at = mx.clip(candidates.shape[-1] - top_k, 0, candidates.shape[-1] - 1)
        threshold = mx.take(candidates, at, axis=-1)[..., None]
        kept = (top_k <= 0) | (top_k >= self._vocabulary) | (logits >= threshold)
        scaled = logits.astype(mx.float32) / mx.where(greedy, 1, temp)
        return mx.argmax(mx.where(kept, scaled, -mx.inf) + mx.where(greedy, 0, noise), axis=-1)
