"""A sampler whose temperature and top-k are inputs of a traced step: one graph for every way to sample."""

from __future__ import annotations

import mlx.core as mx

from ..modules.sampling import MOST_KEPT, Sampler, choose_by_row


class InputSampler(Sampler):
    """Draws what a `Sampler` with the same numbers draws. `temp` float32 `[]`, 0 or less for greedy; `top_k` int32 `[]`, 0 for all.

    `limit` is the largest top-k that rows of `vocabulary` logits can be asked for.
    """

    def __init__(self, vocabulary: int, temp: float, top_k: int):
        super().__init__(temp=temp, top_p=0, top_k=top_k)
        self.limit = min(MOST_KEPT, vocabulary)
        kept = top_k if top_k < vocabulary else 0
        self.inputs = {"temp": mx.array(temp, mx.float32), "top_k": mx.array(kept, mx.int32)}

    @property
    def greedy(self) -> bool:
        """Not known when the step is traced: noise is always drawn, and left out by `choose`."""
        return False

    def choose(self, logits: mx.array, noise: mx.array | None) -> mx.array:
        assert noise is not None
        return choose_by_row(logits, {name: value.reshape(1) for name, value in self.inputs.items()}, noise)
