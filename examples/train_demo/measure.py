"""The dialogue model, run by moshi_mlx as a user would run it: answers, silence, delays."""

from pathlib import Path

import numpy as np

from moshi_mlx import checkpoint
from moshi_mlx.session import Session

from .rates import FRAME_SIZE
from .trials import Reply, Trial, score

BATCH = 30


def talk(session: Session, wavs: np.ndarray) -> list[tuple[np.ndarray, list[tuple[int, str]]]]:
    """wavs [B, T], whole frames -> for each the reply [T] and its (frame, piece of text)."""
    session.reset()
    frames = [session.step(wavs[:, i : i + FRAME_SIZE]) for i in range(0, wavs.shape[1], FRAME_SIZE)]
    return [
        (np.concatenate([f.pcm for f in row]), [(f.index, f.text) for f in row if f.text])
        for row in zip(*frames, strict=True)
    ]


def dialogue_report(model: str | Path, trials: list[Trial]) -> dict:
    """Right text, right sound, silence kept and answer delays, by kind, with the sampling the checkpoint ships with."""
    loaded = checkpoint.load(model, batch=BATCH)
    session = Session(loaded, batch=BATCH)
    replies = []
    for i in range(0, len(trials), BATCH):
        wavs = [t.wav for t in trials[i : i + BATCH]]
        silent = [np.zeros_like(wavs[0])] * (BATCH - len(wavs))
        for sound, words in talk(session, np.stack(wavs + silent))[: len(wavs)]:
            replies.append(Reply("".join(piece for _, piece in words).strip(), sound))
    return score(trials, replies)
