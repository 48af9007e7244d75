"""The finished folder, run by moshi_mlx as a user would run it: codec, answers, silence, delays."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx import checkpoint
from moshi_mlx.session import Session

from .corpus import held_out_utterances
from .metrics import intelligibility, word_accuracy
from .rates import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from .recogniser import Recogniser
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


def codec_report(model: str | Path, count: int = 60) -> dict:
    """STOI and recognised words on held-out sentences and voices, against the original."""
    mimi = checkpoint.load(model).mimi
    recogniser = Recogniser("speech")
    scores, original, decoded = [], [], []
    for text, wav in held_out_utterances(count):
        padded = np.pad(wav, (0, -len(wav) % FRAME_SIZE))
        output = mimi.decode(mimi.encode(mx.array(padded)[None, None]))
        sound = np.array(output)[0, 0, : len(wav)]
        scores.append(intelligibility(wav, sound, SAMPLE_RATE))
        original.append((text, recogniser.transcribe(wav, SAMPLE_RATE)))
        decoded.append((text, recogniser.transcribe(sound, SAMPLE_RATE)))
    return dict(
        stoi=float(np.mean(scores)), stoi_5=float(np.percentile(scores, 5)),
        words_original=word_accuracy(original), words_decoded=word_accuracy(decoded),
        bits_per_second=mimi.num_codebooks * float(np.log2(mimi.cfg.bins)) * FRAME_RATE,
    )  # fmt: skip
