"""Levels and noise of single recordings, [T] float32 at 24 kHz; `channel.py` has the rest."""

import numpy as np
from scipy.signal import lfilter


def rms_db(wav: np.ndarray) -> float:
    return float(10 * np.log10(np.square(wav).mean() + 1e-12))


def at_level(wav: np.ndarray, level_db: float, peak: float = 0.95) -> np.ndarray:
    """Scale to an RMS in dB of full scale, less if it would clip."""
    gain = 10 ** ((level_db - rms_db(wav)) / 20)
    return (wav * min(gain, peak / max(1e-6, float(np.abs(wav).max())))).astype(np.float32)


def coloured_noise(rng: np.random.Generator, length: int, level_db: float) -> np.ndarray:
    """Noise with a random spectral slope (white to brown)."""
    noise = lfilter([1.0], [1.0, -rng.choice([0.0, 0.7, 0.9, 0.98])], rng.standard_normal(length))
    return (noise * 10 ** (level_db / 20) / (noise.std() + 1e-9)).astype(np.float32)
