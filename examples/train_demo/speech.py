"""What a synthesiser gives: samples with the onsets of words and sounds."""

from dataclasses import dataclass, field

import numpy as np
from scipy.signal import resample_poly

from .rates import SAMPLE_RATE


@dataclass
class Utterance:
    """Samples [T] float32 at 24 kHz, cut to the audible part.

    `words` and `phonemes` are (name, onset sample) in time order; phonemes have the names of `phones.py`.
    """

    text: str
    wav: np.ndarray
    words: list[tuple[str, int]] = field(default_factory=list)
    phonemes: list[tuple[str, int]] = field(default_factory=list)


def utterance(text: str, raw: np.ndarray, rate: int, words: list, phonemes: list) -> Utterance:
    """From int16 samples [T] at `rate` and (name, onset in seconds)."""
    wav = resample_poly(raw.astype(np.float32) / 32768, SAMPLE_RATE, rate).astype(np.float32)
    start, stop = audible_span(wav)

    def placed(found: list) -> list[tuple[str, int]]:
        return [(name, min(max(0, round(at * SAMPLE_RATE) - start), stop - start - 1)) for name, at in found]

    return Utterance(text, wav[start:stop], placed(words), placed(phonemes))


def audible_span(wav: np.ndarray, threshold: float = 0.01) -> tuple[int, int]:
    """First and last sample above `threshold` of the peak, as a slice of whole samples."""
    loud = np.flatnonzero(np.abs(wav) > threshold * max(1e-6, np.abs(wav).max()))
    return (int(loud[0]), int(loud[-1]) + 1) if len(loud) else (0, len(wav))
