"""Small speech checkpoints in the published formats, written once per test run, and stand-ins for their parts."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from random_checkpoint import WORD_TOKENIZER, write
from sentencepiece import SentencePieceProcessor

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.speech_to_text.listener import HeardFrames
from moshi_mlx.text_to_speech.tts_model import TTSModel

BOUNDARY, PAD = 0, 3
TOKENIZER = SentencePieceProcessor(str(WORD_TOKENIZER))
_made: list[Path] = []


@functools.cache
def checkpoint(preset: str) -> Path:
    """Folder of `tiny-stt`, `tiny-tts` (voices a.wav and b.wav in its `voices`) or `tiny-tts-prefix`."""
    folder = Path(tempfile.mkdtemp(prefix="moshi-mlx-"))
    _made.append(folder)
    write(folder / preset, preset, None, seed=1)
    return folder / preset


@pytest.fixture(scope="session", autouse=True)
def _tidy():
    yield
    while _made:
        shutil.rmtree(_made.pop(), ignore_errors=True)
    checkpoint.cache_clear()


@functools.cache
def loaded(preset: str) -> checkpoints.Checkpoint:
    return checkpoints.load(checkpoint(preset))


def make_tts(preset: str = "tiny-tts", **options) -> TTSModel:
    """A greedy model with local voices."""
    options = {"temp": 0.0, "n_q": 16, "voice_repo": str(checkpoint("tiny-tts") / "voices"), **options}
    return TTSModel.from_checkpoint(loaded(preset), **options)


def attributes(tts: TTSModel, *voices: str):
    return tts.make_condition_attributes([tts.get_voice_path(v) for v in voices or ["a.wav"]], 2.0)


class ScriptedListener:
    """Hears what a test prescribes: the token of every step, and where given the pause probabilities of four heads."""

    def __init__(self, tokens, pauses=None):
        self.tokens, self.pauses = list(tokens), list(pauses or [])
        self.at, self.heads, self.heard_silence = 0, 4, 0

    class mimi:
        frame_rate, frame_size, sample_rate = 12.5, 1920, 24000

    def start(self):
        return None

    def _next(self) -> HeardFrames:
        token = self.tokens[self.at] if self.at < len(self.tokens) else PAD
        pause = self.pauses[self.at] if self.at < len(self.pauses) else 0.0
        self.at += 1
        return HeardFrames(np.array([[token]]), np.full((1, 1, 4), pause, np.float32))

    def read(self, heard):
        return self._next()

    def listen(self, pcm):
        self.heard_silence += not pcm.any()
        return self._next()

    def warm_up(self):
        pass


def stream(*plan) -> list[int]:
    """Tokens of a plan: a number is so many pads, a text a boundary and its pieces."""
    tokens: list[int] = []
    for item in plan:
        tokens += [PAD] * item if isinstance(item, int) else [BOUNDARY, *TOKENIZER.encode(item)]
    return tokens
