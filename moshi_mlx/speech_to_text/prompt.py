"""A text prompt: the transcript is made to begin with given words (family.md 1.6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .words import BOUNDARY, PAD


class TextPrompt:
    """Hooks for a step: until the prompt has been said, only its next token, BOUNDARY and PAD may be sampled.

    The model decides when; the audio must say the text. Each of the `batch` streams goes through the prompt by itself.
    """

    def __init__(self, tokens: Sequence[int], batch: int = 1):
        self._tokens, self._batch = list(tokens), batch
        # Streams that make the next step, bool [batch]; None: all.
        self.executed: np.ndarray | None = None
        self._left: list[deque[int]] = []
        self.reset()

    def __len__(self) -> int:
        return len(self._tokens)

    def reset(self, row: int | None = None) -> None:
        """Begin anew, in all streams or in `row`."""
        if row is not None:
            self._left[row] = deque(self._tokens)
            return
        self._left = [deque(self._tokens) for _ in range(self._batch)]

    @property
    def left(self) -> list[int]:
        """Tokens of the prompt not yet said, per stream."""
        return [len(q) for q in self._left]

    def constrain(self, logits: mx.array) -> mx.array:
        """`[B, V]` with -inf for everything that the prompt excludes."""
        if not any(self._left):
            return logits
        allowed = np.zeros(logits.shape, bool)
        for row, queue in zip(allowed, self._left, strict=True):
            row[[BOUNDARY, PAD, queue[0]] if queue else slice(None)] = True
        return mx.where(mx.array(allowed), logits, -mx.inf)

    def observe(self, text: mx.array) -> None:
        """`[B, 1]`: what was sampled. Read back only while there is a prompt."""
        if not any(self._left):
            return
        executed = np.ones(self._batch, bool) if self.executed is None else self.executed
        for queue, token, steps in zip(self._left, np.array(text)[:, 0], executed, strict=True):
            if steps and queue and int(token) == queue[0]:
                queue.popleft()
