"""`python -m moshi_mlx.local` with something else in the model's place: `live_program.py TALKER [options of local]`.

TALKER is `echo` (says what it hears, 0.6 times as loud), `slow` (so does a model that takes 100 ms per frame), `tone` (a steady
sine, whatever it hears), or `say:FILE` (reads a recording).
"""

from __future__ import annotations

import sys
import time

import numpy as np

from moshi_mlx import commands, local
from moshi_mlx.audio.files import read_audio
from moshi_mlx.session import Frame


class Talker:
    """Steps like a session; `seconds` is what a step takes."""

    def __init__(self, kind: str):
        self.kind, _, file = kind.partition(":")
        self.speech = read_audio(file) if file else np.zeros(0, np.float32)
        self.seconds = 0.1 if kind == "slow" else 0.0
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        self.index = 0

    def step(self, pcm: np.ndarray) -> Frame:
        time.sleep(self.seconds)
        at = 1920 * self.index
        if self.kind == "tone":
            out = 0.5 * np.sin(2 * np.pi * 300 * (at + np.arange(1920)) / 24000).astype(np.float32)
        elif self.kind == "say":
            out = self.speech[at : at + 1920]
            out = np.pad(out, (0, 1920 - len(out)))
        else:
            out = 0.6 * pcm
        text = f" {self.index}" if self.index % 5 == 0 else ""
        self.index += 1
        return Frame(out, text, 0, np.zeros(8, np.int32), self.index - 1, (self.index - 1) * 0.08)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    commands.run(lambda argv: local.main(argv, lambda args: Talker(kind)), rest)
