"""One voice made into another: pitch, formants and tempo moved independently of each other."""

from fractions import Fraction

import numpy as np
from scipy.signal import istft, resample_poly, stft

from .rates import SAMPLE_RATE
from .speech import Utterance

FRAME, HOP, SEARCH = 720, 360, 240  # samples at 24 kHz: 30 ms, 15 ms, 10 ms
FFT, LIFTER = 1024, 48  # the envelope has no detail finer than 500 Hz
MOST_GAIN = 2.5  # nepers: what the envelope of a moved formant may add
# Where a throat may differ from one that is only longer or shorter. Towards the edge of the band nothing is moved: a long throat has
# high sounds too.
BENDS_HZ, EDGE_HZ = (700, 1600, 3000, 5000), 8000


def change_voice(
    said: Utterance, pitch: float, formants: float, tempo: float, bends: tuple[float, ...] = ()
) -> Utterance:
    """`said` with pitch and formants multiplied, spoken `tempo` times as fast; onsets are moved along.

    `bends`: further factors of formants near `BENDS_HZ`.
    """
    if pitch == formants == tempo == 1 and not bends:
        return said
    length = int(len(said.wav) / tempo)
    factors = formants / pitch * np.array(bends or [1.0] * len(BENDS_HZ))
    wav = _move_formants(_stretch(_resample(said.wav, pitch), length), factors)

    def placed(found: list) -> list[tuple[str, int]]:
        return [(name, min(int(at / tempo), length - 1)) for name, at in found]

    return Utterance(said.text, wav, placed(said.words), placed(said.phonemes))


def _resample(wav: np.ndarray, factor: float) -> np.ndarray:
    """Played `factor` times as fast: pitch and formants rise together."""
    ratio = Fraction(1 / factor).limit_denominator(40)
    return resample_poly(wav, ratio.numerator, ratio.denominator).astype(np.float32)


def _stretch(wav: np.ndarray, length: int) -> np.ndarray:
    """wav [T] -> [length] with its pitch kept: overlapping frames, each taken where it continues the last one best."""
    if abs(length - len(wav)) < HOP or len(wav) < 2 * FRAME:
        return np.pad(wav, (0, max(0, length - len(wav))))[:length]
    source = np.pad(wav, (SEARCH, FRAME + HOP + 2 * SEARCH))
    window = np.hanning(FRAME + 1)[:FRAME].astype(np.float32)
    out = np.zeros(length + 2 * FRAME, np.float32)
    speed, at = len(wav) / length, SEARCH
    for begin in range(0, length, HOP):
        wanted = SEARCH + int(begin * speed)
        if begin:
            follows = source[at + HOP : at + HOP + FRAME // 2 : 2]
            region = source[wanted - SEARCH : wanted + SEARCH + FRAME // 2 : 2]
            at = wanted - SEARCH + 2 * int(np.correlate(region, follows, "valid").argmax())
        out[begin : begin + FRAME] += window * source[at : at + FRAME]
    return out[HOP // 2 : HOP // 2 + length]


def _move_formants(wav: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The spectral envelope moved along the frequencies, near `BENDS_HZ` by these factors; the harmonics stay."""
    if np.abs(factors - 1).max() < 0.01 or len(wav) < FFT:
        return wav
    _, _, spectrum = stft(wav, nperseg=FFT, noverlap=FFT * 3 // 4)
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-5), axis=0)
    cepstrum[LIFTER:-LIFTER] = 0
    envelope = np.fft.rfft(cepstrum, axis=0).real
    bins, hertz = np.arange(len(envelope)), SAMPLE_RATE / FFT
    moved = [(at * factor, at) for at, factor in zip(BENDS_HZ, factors, strict=True) if at * factor < 0.9 * EDGE_HZ]
    to, of = zip((0, 0), *moved, (EDGE_HZ, EDGE_HZ), (SAMPLE_RATE / 2, SAMPLE_RATE / 2), strict=True)
    at = np.interp(bins * hertz, to, of) / hertz
    low = at.astype(int)
    high, part = np.minimum(low + 1, bins[-1]), (at - low)[:, None]
    gain = (1 - part) * envelope[low] + part * envelope[high] - envelope
    _, out = istft(spectrum * np.exp(gain.clip(-MOST_GAIN, MOST_GAIN)), nperseg=FFT, noverlap=FFT * 3 // 4)
    return np.pad(out, (0, max(0, len(wav) - len(out))))[: len(wav)].astype(np.float32)
