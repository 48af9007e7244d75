"""A stand-in for the speech-to-text model behind everything else of it: it hears which word a frame means, and writes it with a delay."""

from __future__ import annotations

import numpy as np
import speech_toys
from speech_toys import BOUNDARY, PAD, TOKENIZER

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.config.description import SttConfig
from moshi_mlx.speech_to_text.listener import HeardFrames
from moshi_mlx.speech_to_text.rows import Transcriptions

FRAME = 1920
# Words of one token.
WORDS = [
    w
    for w in ["the", "of", "and", "to", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with", "as"]
    if len(TOKENIZER.encode(w)) == 1
]
# What the first samples of a frame hold that begins a word, after its number in hundredths.
SIGN = (0.5, -0.5)


def said(*words: str | int) -> np.ndarray:
    """Sound of words, each four frames long; a number is so many frames of faint noise."""
    frames = []
    for word in words:
        count = word if isinstance(word, int) else 4
        sound = np.random.default_rng(len(frames)).uniform(-0.002, 0.002, (count, FRAME))
        if isinstance(word, str):
            sound += 0.2 * np.sin(np.arange(FRAME) / 5)
            sound[0, :3] = (WORDS.index(word) + 1) / 100, *SIGN
        frames.append(sound)
    return np.concatenate(frames).reshape(-1).astype(np.float32)


class EchoListener:
    def __init__(self, rows: int, delay: int, heads: int = 0):
        self.rows, self.delay, self.heads, self.steps = rows, delay, heads, 0
        self._tokens: dict[int, dict[int, int]] = {}
        self._heard: dict[int, int] = {}

    def join(self, row: int, seed: int) -> None:
        self._tokens[row], self._heard[row] = {}, 0

    def listen_some(self, frames: dict[int, np.ndarray], fresh) -> HeardFrames:
        self.steps += 1
        tokens = np.full((1, self.rows), PAD, np.int32)
        for row, pcm in frames.items():
            now = self._heard[row]
            word = round(100 * float(pcm[0]))
            if tuple(pcm[1:3]) == SIGN and 0 < word <= len(WORDS):
                written = [BOUNDARY, *TOKENIZER.encode(WORDS[word - 1])]
                self._tokens[row].update({now + self.delay + i: token for i, token in enumerate(written)})
            tokens[0, row] = self._tokens[row].pop(now, PAD)
            self._heard[row] += 1
        return HeardFrames(tokens, np.zeros((1, self.rows, self.heads), np.float32))


def transcriptions(rows: int = 2, delay: float = 0.48, heads: int = 0) -> Transcriptions:
    """Words come `delay` seconds after they were said, to the frame."""
    kind = Transcriptions(checkpoints.load(speech_toys.checkpoint("tiny-stt")), rows, delays=SttConfig(delay, 0.0))
    kind._listener = EchoListener(rows, round(delay * 12.5), heads)  # type: ignore[assignment]
    return kind
