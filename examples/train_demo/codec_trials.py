"""What the codec is tested on: sentences and speakers that training never heard, before and after coding."""

import random
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
from pystoi import stoi

from moshi_mlx import checkpoint

from . import domain
from .augment import at_level
from .metrics import word_accuracy
from .rates import FRAME_RATE, FRAME_SIZE, SAMPLE_RATE
from .recogniser import Recogniser
from .sentences import Chains, heard_words
from .speakers import HELD_OUT, Synthesisers, sample_speaker


def intelligibility(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """STOI of `decoded` against `reference` (both [T] float32), 0..1."""
    n = min(len(reference), len(decoded))
    return float(stoi(reference[:n], decoded[:n], sample_rate, extended=False))


def spoken_texts(seed: int) -> Iterator[str]:
    """Held-out sentences of every sort, four words or longer: STOI needs more than a third of a second of speech."""
    rng = random.Random(seed)
    general = domain.general_sentences(seed, held_out=True)
    chains = Chains(heard_words()).stream(seed, held_out=True)
    while True:
        text = next(rng.choice((general, chains)))
        if len(text.split()) >= 4:
            yield text


def held_out_utterances(count: int, seed: int = 7, side: str = HELD_OUT) -> list[tuple[str, np.ndarray]]:
    """(text, wav [T]) of held-out sentences by speakers of one side, clean, for the codec's test."""
    rng, synthesisers, texts = random.Random(seed), Synthesisers(), spoken_texts(seed)
    found = []
    for text, _ in zip(texts, range(count), strict=False):
        found.append((text, at_level(synthesisers.say(text, sample_speaker(rng, side)).wav, -22.0)))
    return found


def codec_report(model: str | Path, count: int, side: str = HELD_OUT) -> dict:
    """STOI and recognised words on held-out sentences by speakers of one side, against the original."""
    mimi = checkpoint.load(model).mimi
    recogniser = Recogniser("speech")
    scores, original, decoded = [], [], []
    for text, wav in held_out_utterances(count, side=side):
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
