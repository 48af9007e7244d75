"""Faster and slower speech: its length, its pitch, and that it does not matter in which pieces it comes."""

from __future__ import annotations

import numpy as np
import pytest

from moshi_mlx.audio.files import read_audio
from moshi_mlx.audio.tempo import HOP_SECONDS, Tempo

RATE = 24000


def played(pcm: np.ndarray, speed: float, size: int = 1920) -> np.ndarray:
    tempo = Tempo(speed)
    return np.concatenate([*(tempo.feed(pcm[at : at + size]) for at in range(0, len(pcm), size)), tempo.finish()])


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.9, 1.25, 2.0, 4.0])
@pytest.mark.parametrize("hertz", [80, 220, 1000])
def test_a_tone_keeps_its_pitch(speed, hertz):
    tone = (0.3 * np.sin(2 * np.pi * hertz * np.arange(2 * RATE) / RATE)).astype(np.float32)
    found = played(tone, speed)
    assert 0 <= len(found) - round(2 * RATE / speed) <= HOP_SECONDS * RATE
    middle = found[1000:-1000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) ** 2
    peak = int(np.argmax(spectrum))
    # Pieces lie at whole samples: a tone whose period is none comes out within a thousandth.
    assert abs(peak * RATE / len(middle) - hertz) <= max(RATE / len(middle), 0.001 * hertz)
    # Seams would be heard as other frequencies.
    assert spectrum[max(0, peak - 4) : peak + 5].sum() > 0.999 * spectrum.sum()
    assert np.sqrt(np.mean(middle**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.02)


@pytest.mark.parametrize("speed", [0.7, 1.5])
def test_speech_in_pieces_of_any_length(speed, question):
    pcm = read_audio(question)[: 3 * RATE]
    whole = played(pcm, speed, len(pcm))
    for size in (333, 1920, 7001):
        np.testing.assert_array_equal(played(pcm, speed, size), whole)
    assert np.abs(whole).max() <= np.abs(pcm).max() * 1.01


def test_unchanged_and_little():
    pcm = np.random.default_rng(0).uniform(-1, 1, 5000).astype(np.float32)
    np.testing.assert_array_equal(played(pcm, 1.0), pcm)
    for speed in (0.25, 1.1, 4.0):
        assert len(played(pcm[:1], speed)) <= 4
        assert len(Tempo(speed).finish()) == 0
        assert not np.any(played(np.zeros(5000, np.float32), speed))


def test_little_waits():
    """What is put out follows what comes in by less than a frame."""
    tempo, out = Tempo(2.0), 0
    for n in range(1, 50):
        out += len(tempo.feed(np.zeros(1920, np.float32)))
        assert out > (n - 1) * 1920 / 2
        assert len(tempo._sound) < 3 * 1920
