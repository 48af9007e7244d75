"""Levels, rooms, microphones and noise of single recordings, [T] float32 at 24 kHz, for the tests; training has `channel.py`."""

import numpy as np
from scipy.signal import fftconvolve, lfilter

from .rates import SAMPLE_RATE


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


def room_echo(rng: np.random.Generator, wav: np.ndarray) -> np.ndarray:
    """Convolve with a synthetic room: direct sound plus an exponentially decaying tail.

    The output keeps the input's length and starts with the direct sound, so onsets stay true.
    """
    t60 = rng.uniform(0.1, 0.5)
    t = np.arange(int(t60 * SAMPLE_RATE)) / SAMPLE_RATE
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / t60)
    tail[: int(0.002 * SAMPLE_RATE)] = 0.0
    tail *= rng.uniform(0.1, 0.6) / (np.sqrt(np.square(tail).sum()) + 1e-9)
    tail[0] = 1.0
    return fftconvolve(wav, tail)[: len(wav)].astype(np.float32)


def microphone(rng: np.random.Generator, wav: np.ndarray) -> np.ndarray:
    """A dull or thin microphone: one first-order low-pass or high-pass filter."""
    if rng.random() < 0.5:
        pole = np.exp(-2 * np.pi * rng.uniform(2500, 6000) / SAMPLE_RATE)
        return lfilter([1 - pole], [1, -pole], wav).astype(np.float32)
    pole = np.exp(-2 * np.pi * rng.uniform(80, 300) / SAMPLE_RATE)
    return lfilter([1, -1], [1, -pole], wav).astype(np.float32)


def channel_of_test(rng: np.random.Generator, wav: np.ndarray) -> np.ndarray:
    """One utterance of a test as it reaches the microphone, without background noise."""
    if rng.random() < 0.7:
        return at_level(wav, rng.uniform(-30, -18))
    if rng.random() < 0.5:
        wav = room_echo(rng, wav)
    if rng.random() < 0.5:
        wav = microphone(rng, wav)
    return at_level(wav, rng.uniform(-34, -16))
