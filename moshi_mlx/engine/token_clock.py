"""Which token every channel reads, writes and returns at every step (lm.md section 3).

A conversation's recent tokens are a window `[B, K, 2M + 2]` around the current position o (M is the largest delay): column
j holds position o - M + j. After each step the window moves by one column, so that every index is a constant.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from ..config.parts import LmConfig

ZERO = -1
UNGENERATED = -2


class TokenClock:
    """Token bookkeeping of a model that generates its first `generated` audio codebooks, the caller giving the others."""

    def __init__(self, cfg: LmConfig, generated: int):
        self.generated = generated
        self.given = cfg.n_q - generated
        self.max_delay = cfg.max_delay
        self.channels = cfg.num_channels
        self.columns = 2 * self.max_delay + 2
        self.delays = mx.array(cfg.delays, mx.int32)
        self.initial = mx.array(cfg.initial_tokens, mx.int32)
        here = self.max_delay
        self._here = here
        # Where a step's user codes land, and where its own tokens do: one cell per channel.
        self._given_cells = self._cells({c: here + cfg.delays[c] for c in range(1 + generated, self.channels)})
        self._generated_cells = self._cells(dict.fromkeys(range(1 + generated), here + 1))
        # After the move, position o' - M + delay of each returned channel.
        flat = [c * self.columns + cfg.delays[c] for c in range(1 + generated)]
        self._returned = mx.array(flat, mx.int32)

    def _cells(self, columns: dict[int, int]) -> mx.array:
        mask = np.zeros((self.channels, self.columns), bool)
        for channel, column in columns.items():
            mask[channel, column] = True
        return mx.array(mask)

    def init(self, batch: int) -> mx.array:
        return mx.full((batch, self.channels, self.columns), UNGENERATED, mx.int32)

    def insert(self, tokens: mx.array, given: mx.array) -> mx.array:
        """Put the user codes `given [B, n_q - generated]` where their delays say."""
        if not self.given:
            return tokens
        batch = tokens.shape[0]
        row = mx.concatenate([_nothing(batch, 1 + self.generated), given.astype(mx.int32)], axis=1)
        return mx.where(self._given_cells, row[..., None], tokens)

    def read(self, tokens: mx.array, offset: mx.array) -> tuple[mx.array, mx.array]:
        """Model input `[B, K]` at `offset` (`[]` or `[B]`), and where it is the initial token."""
        is_initial = _column(offset) <= self.delays
        is_initial = mx.broadcast_to(is_initial, tokens.shape[:2])
        return mx.where(is_initial, self.initial, tokens[:, :, self._here]), is_initial

    def commit(self, tokens: mx.array, text: mx.array, audio: mx.array | None) -> mx.array:
        """Write `text [B]` and `audio [B, generated]` at the next position and move the window there."""
        own = text[:, None] if audio is None else mx.concatenate([text[:, None], audio], axis=1)
        batch = tokens.shape[0]
        row = mx.concatenate([own.astype(mx.int32), _nothing(batch, self.given)], axis=1)
        tokens = mx.where(self._generated_cells, row[..., None], tokens)
        blank = mx.broadcast_to(mx.array(UNGENERATED, mx.int32), (batch, self.channels, 1))
        return mx.concatenate([tokens[:, :, 1:], blank], axis=2)

    def returned(self, tokens: mx.array) -> mx.array:
        """The frame `[B, 1 + generated]` that is complete after a commit: every channel un-delayed, text first."""
        return mx.take(tokens.reshape(tokens.shape[0], -1), self._returned, axis=1)


def _nothing(batch: int, count: int) -> mx.array:
    """Filler for channels that a step does not write, a view of one number."""
    return mx.broadcast_to(mx.array(ZERO, mx.int32), (batch, count))


def _column(offset: mx.array) -> mx.array:
    return offset if offset.ndim == 0 else offset[:, None]
