"""Loudness of a recording by ITU-R BS.1770-4, and its change to a wanted one.

Of the libraries that measure it, the well-kept ones bring scipy with them; the standard itself is two filters and two gates.
"""

from __future__ import annotations

import numpy as np
import soxr

from ..errors import AudioError

# The standard gives its two filters for this rate: a shelf for the head, then a high pass (numerator, denominator).
_RATE = 48000
_SHELF = ([1.53512485958697, -2.69169618940638, 1.19839281085285], [1.0, -1.69065929318241, 0.73248077421585])
_HIGH_PASS = ([1.0, -2.0, 1.0], [1.0, -1.99004745483398, 0.99007225036621])
_BLOCK, _HOP = int(0.4 * _RATE), int(0.1 * _RATE)
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0


def loudness(pcm: np.ndarray, rate: int) -> float:
    """Integrated loudness of mono `pcm [n]` in LUFS. Raises `AudioError` when it is too short or too quiet to have one."""
    x = np.asarray(pcm, np.float64)
    if rate != _RATE:
        x = soxr.resample(x, rate, _RATE)
    if len(x) < _BLOCK:
        raise AudioError(
            f"a recording of {len(pcm) / rate:.2f} s is too short to measure its loudness; 0.4 s are needed."
        )
    power = _weighted(x) ** 2
    total = np.concatenate([[0.0], np.cumsum(power)])
    starts = np.arange(0, len(x) - _BLOCK + 1, _HOP)
    blocks = np.maximum((total[starts + _BLOCK] - total[starts]) / _BLOCK, 0)
    audible = blocks[_level(blocks) > _ABSOLUTE_GATE]
    if not len(audible):
        raise AudioError("the recording is silent, or nearly so. Check that the right input was recorded.")
    counted = audible[_level(audible) > _level(audible.mean()) + _RELATIVE_GATE]
    return float(_level(counted.mean()))


def decibels(pcm: np.ndarray) -> float:
    """Level of `pcm` in dBFS, -120 for silence."""
    power = float(np.mean(np.square(pcm, dtype=np.float64))) if len(pcm) else 0.0
    return max(-120.0, 10 * float(np.log10(power + 1e-12)))


def with_loudness(pcm: np.ndarray, rate: int, target: float) -> np.ndarray:
    """`pcm [n]` amplified or attenuated to `target` LUFS, float32."""
    gain = 10 ** ((target - loudness(pcm, rate)) / 20)
    return np.asarray(pcm * gain, np.float32)


def _weighted(x: np.ndarray) -> np.ndarray:
    """Both filters, in the frequency domain: their responses have died away long before the second of padding ends."""
    size = len(x) + _RATE
    z = np.exp(-2j * np.pi * np.fft.rfftfreq(size))
    response = np.ones_like(z)
    for numerator, denominator in (_SHELF, _HIGH_PASS):
        response *= np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
    return np.fft.irfft(np.fft.rfft(x, size) * response, size)[: len(x)]


def _level(power: np.ndarray) -> np.ndarray:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-20))
