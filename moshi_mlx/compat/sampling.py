"""Draws by one rule each, as scripts of the published package call them. Noise is that of MLX's global generator.

`logits [..., V]` give tokens `[...]` int32.
"""

from __future__ import annotations

import mlx.core as mx

from ..modules.sampling import Sampler


def min_p_sampling(logits: mx.array, min_p: float, min_tokens_to_keep: int = 1, temperature: float = 1.0) -> mx.array:
    """Of the tokens at least `min_p` times as probable as the most probable one, and of `min_tokens_to_keep` in any case."""
    return _draw(Sampler(temperature, 0.0, None, min_p, min_tokens_to_keep), logits)


def top_k_sampling(logprobs: mx.array, top_k: int, temperature: float = 1.0) -> mx.array:
    """Of the `top_k` most probable tokens."""
    return _draw(Sampler(temperature, 0.0, top_k), logprobs)


def top_p_sampling(logits: mx.array, top_p: float, temperature: float = 1.0) -> mx.array:
    """Of the most probable tokens that hold `top_p` of the probability."""
    return _draw(Sampler(temperature, top_p), logits)


def categorical_sampling(logits: mx.array, temp: float) -> mx.array:
    """Of all tokens."""
    return _draw(Sampler(temp, 0.0), logits)


def _draw(sampler: Sampler, logits: mx.array) -> mx.array:
    token, _ = sampler(logits)
    return token
