"""Teacher-forced forward over whole sequences (lm.md 3.5): for evaluation, comparison of precisions and training."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from ..models.lm_model import LmModel
from .step import Conditions


@dataclass(frozen=True)
class ForwardOutput:
    """Logits of `codes [B, K, T]`, float, on two time axes.

    `hidden [B, T, d]`, `text_logits_delayed [B, T, V]`, `audio_logits_delayed [B, Dq, T, card]` are as the model computes
    them. `text_logits [B, 1, T, V]` and `audio_logits [B, Dq, T, card]` are moved back by each channel's delay, so that entry t
    predicts `codes[..., t]`: NaN where no position does. The masks are false there and where the code is -1.
    """

    hidden: mx.array
    text_logits_delayed: mx.array
    text_logits: mx.array
    text_mask: mx.array
    audio_logits_delayed: mx.array | None = None
    audio_logits: mx.array | None = None
    audio_mask: mx.array | None = None


def delay_codes(lm: LmModel, codes: mx.array) -> mx.array:
    """`[B, K, T]` -> `[B, K, T + 1]`: each channel shifted by its delay and led by initial tokens, one column in front."""
    length = codes.shape[2]
    channels = []
    for c, (delay, initial) in enumerate(zip(lm.cfg.delays, lm.cfg.initial_tokens, strict=True)):
        lead = mx.full((codes.shape[0], min(delay, length) + 1), initial, codes.dtype)
        channels.append(mx.concatenate([lead, codes[:, c, : max(length - delay, 0)]], axis=1))
    return mx.stack(channels, axis=1)


def forward(lm: LmModel, codes: mx.array, conditions: Conditions | None = None) -> ForwardOutput:
    """Predict every entry of `codes [B, K, T]` (-1 allowed, text may be muxed) from what came before it."""
    conditions = conditions or Conditions()
    delayed = delay_codes(lm, codes)
    x = lm.embed(delayed[..., :-1])
    if conditions.total is not None:
        x = x + conditions.total.astype(x.dtype)
    hidden = lm.out_norm(lm.transformer.forward(x, conditions.cross))
    text = lm.text_linear(hidden)
    text_logits, text_mask = _realign(text[:, None], codes[:, :1], lm.cfg.delays[:1])
    if not lm.dep_q:
        return ForwardOutput(hidden, text, text_logits, text_mask)
    audio = _depth(lm, hidden, delayed[..., 1:])
    own = codes[:, 1 : 1 + lm.dep_q]
    audio_logits, audio_mask = _realign(audio, own, lm.cfg.delays[1 : 1 + lm.dep_q])
    return ForwardOutput(hidden, text, text_logits, text_mask, audio, audio_logits, audio_mask)


def _depth(lm: LmModel, hidden: mx.array, following: mx.array) -> mx.array:
    """Depth logits `[B, Dq, T, card]`: all positions at once, as if each were a batch row."""
    batch, length, dim = hidden.shape
    logits: list[mx.array] = []

    def choose(k: int, x: mx.array) -> mx.array:
        logits.append(x)
        return following[:, 1 + k].reshape(-1)

    lm.depformer(hidden.reshape(batch * length, 1, dim), following[:, 0].reshape(-1), choose)
    return mx.stack([x.reshape(batch, length, -1) for x in logits], axis=1)


def _realign(logits: mx.array, codes: mx.array, delays: list[int]) -> tuple[mx.array, mx.array]:
    """Undo the delays of `logits [B, C, T, V]`."""
    batch, _, length, size = logits.shape
    values, masks = [], []
    for c, delay in enumerate(delays):
        delay = min(delay, length)
        tail = mx.full((batch, delay, size), mx.nan, mx.float32)
        values.append(mx.concatenate([logits[:, c, delay:].astype(mx.float32), tail], axis=1))
        masks.append((mx.arange(length) < length - delay) & (codes[:, c] != -1))
    return mx.stack(values, axis=1), mx.stack(masks, axis=1)
