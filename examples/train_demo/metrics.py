"""What "it works" means, in numbers: intelligibility, recognised words, answers, delays.

No deep-learning framework here: audio is numpy float32 in [-1, 1], text is plain strings, so
that the same measures apply to any implementation of the model.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
from pocketsphinx import Decoder, get_model_path
from pystoi import stoi
from scipy.signal import resample_poly

from . import domain

_RECOGNISER_RATE = 16_000


def intelligibility(reference: np.ndarray, decoded: np.ndarray, sample_rate: int) -> float:
    """STOI of `decoded` against `reference` (both [T]), 0..1."""
    n = min(len(reference), len(decoded))
    return float(stoi(reference[:n], decoded[:n], sample_rate, extended=False))


def word_errors(reference: str, hypothesis: str) -> int:
    """Word-level edit distance."""
    ref, hyp = reference.split(), hypothesis.split()
    row = list(range(len(hyp) + 1))
    for i, r in enumerate(ref, 1):
        previous, row[0] = row[0], i
        for j, h in enumerate(hyp, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (r != h))
    return row[-1]


def word_accuracy(pairs: list[tuple[str, str]]) -> float:
    """1 - word error rate over (reference, hypothesis) pairs."""
    total = sum(len(ref.split()) for ref, _ in pairs)
    return 1 - sum(word_errors(ref, hyp) for ref, hyp in pairs) / max(1, total)


def grammar(start: str) -> str:
    """A JSGF grammar of the domain from the rule `start`: `answer` for what Moshi may say (in a
    sum every word is free, so a wrong total shows), `speech` for everything."""
    rules = "".join(f"<{name}> = {body};\n" for name, body in domain.speech_rules().items())
    return f"#JSGF V1.0;\ngrammar demo;\n{rules}public <start> = <{start}>;\n"


class Recogniser:
    """pocketsphinx with its US English acoustic model and a finite grammar."""

    def __init__(self, start: str):
        model = Path(get_model_path("en-us"))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "demo.gram"
            path.write_text(grammar(start))
            dictionary = Path(folder) / "demo.dict"
            extra = "".join(f"{w} {p}\n" for w, p in domain.EXTRA_PRONUNCIATIONS.items())
            dictionary.write_text((model / "cmudict-en-us.dict").read_text() + extra)
            self._decoder = Decoder(
                hmm=str(model / "en-us"), dict=str(dictionary), jsgf=str(path), lm=None,
                samprate=_RECOGNISER_RATE, loglevel="FATAL",
            )  # fmt: skip

    def transcribe(self, wav: np.ndarray, sample_rate: int) -> str:
        """wav [T] -> the best sentence of the grammar, or "" if none fits."""
        common = math.gcd(_RECOGNISER_RATE, sample_rate)
        wav = resample_poly(wav, _RECOGNISER_RATE // common, sample_rate // common)
        edge = np.zeros(_RECOGNISER_RATE // 4)
        peak = max(1e-6, float(np.abs(wav).max()))
        clean = np.concatenate([edge, wav / peak * 0.7, edge])
        # Exact zeros upset the recogniser's log spectrum: a third of the words would be lost.
        dither = np.random.default_rng(0).normal(scale=1e-3, size=len(clean))
        pcm = ((clean + dither) * 32767).astype(np.int16)
        self._decoder.start_utt()
        self._decoder.process_raw(pcm.tobytes(), full_utt=True)
        self._decoder.end_utt()
        best = self._decoder.hyp()
        return best.hypstr if best else ""


def speech_spans(
    wav: np.ndarray, sample_rate: int, floor_db: float = -45.0, join_s: float = 0.3
) -> list[tuple[float, float]]:
    """(start, end) in seconds of audible parts of wav [T], with gaps under `join_s` closed.

    A 10 ms block is audible when its RMS exceeds `floor_db` relative to full scale.
    """
    block = sample_rate // 100
    n = len(wav) // block
    rms = np.sqrt(np.square(wav[: n * block].reshape(n, block)).mean(1) + 1e-12)
    spans: list[list[float]] = []
    for i in np.flatnonzero(20 * np.log10(rms) > floor_db):
        start, stop = i / 100, (i + 1) / 100
        if spans and start - spans[-1][1] < join_s:
            spans[-1][1] = stop
        else:
            spans.append([start, stop])
    return [(a, b) for a, b in spans]


def wilson_interval(hits: int, count: int) -> tuple[float, float]:
    """95 % confidence interval of a share."""
    if not count:
        return (0.0, 1.0)
    z, p = 1.96, hits / count
    centre = p + z * z / (2 * count)
    half = z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return ((centre - half) / (1 + z * z / count), (centre + half) / (1 + z * z / count))
