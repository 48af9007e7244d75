"""What a step of a conversation answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Frame:
    """80 ms of reply.

    `pcm` float32 `[1920]` (silence while the model's delays fill); `text` is what became readable in this frame, a new word
    beginning with a space; `text_token` and `codes` int32 `[dep_q]` are the frame's tokens, -2 where there are none yet;
    `index` counts frames from 0; `time` is its start in seconds.
    """

    pcm: np.ndarray
    text: str
    text_token: int
    codes: np.ndarray
    index: int
    time: float
