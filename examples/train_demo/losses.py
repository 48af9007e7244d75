"""Reconstruction losses of the codec: log-mel spectra at several resolutions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .rates import SAMPLE_RATE

WINDOWS = (256, 512, 1024, 2048)
MEL_BANDS = (24, 40, 64, 80)
# Added before the logarithm: below this level (about -50 dB of full scale) errors are inaudible.
FLOOR = 3e-3
LINEAR_WEIGHT = 0.02  # on the footing of the log term, the linear one would drown it


def mel_filters(bands: int, window: int) -> Tensor:
    """[bands, window / 2 + 1] triangular filters, equally spaced on the mel scale."""
    bins = window // 2 + 1
    hertz = torch.linspace(0, SAMPLE_RATE / 2, bins)

    def mel(f: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(f / 700.0)

    edges = torch.linspace(0, float(mel(hertz[-1:])), bands + 2)
    position = mel(hertz)[None]
    left, centre, right = (edges[i : i + bands, None] for i in range(3))
    rising = (position - left) / (centre - left)
    falling = (right - position) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    return filters / filters.sum(1, keepdim=True).clamp(min=1e-3)


class SpectralLoss(nn.Module):
    def __init__(self):
        super().__init__()
        for window, bands in zip(WINDOWS, MEL_BANDS, strict=True):
            self.register_buffer(f"hann_{window}", torch.hann_window(window))
            self.register_buffer(f"mel_{window}", mel_filters(bands, window))

    def _mel(self, wav: Tensor, window: int) -> Tensor:
        """[B, T] -> [B, bands, frames] of magnitude; white noise of RMS r gives about r."""
        hann = getattr(self, f"hann_{window}")
        spectrum = torch.stft(wav, window, window // 4, window=hann, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        magnitude = (power / hann.square().sum() + 1e-9).sqrt()
        return getattr(self, f"mel_{window}") @ magnitude

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Both [B, T] -> scalar."""
        total = output.new_zeros(())
        for window in WINDOWS:
            a, b = self._mel(output, window), self._mel(target, window)
            total = total + (torch.log(a + FLOOR) - torch.log(b + FLOOR)).abs().mean()
            total = total + LINEAR_WEIGHT * (a - b).abs().mean()
        return total


class EnvelopeLoss(nn.Module):
    """1 - correlation of short-time envelopes in third-octave bands, as intelligibility
    measures define it; only segments with speech count."""

    WINDOW, HOP, FFT = 614, 307, 1024  # 25.6 ms, 12.8 ms
    BANDS, LOWEST_HZ = 15, 150.0
    SEGMENT, STRIDE = 30, 3  # frames: 384 ms
    RANGE_DB = 40.0  # frames this far below the loudest one are not speech
    CLIP = 1 + 10 ** (15 / 20)  # an envelope may exceed the target by at most 15 dB

    def __init__(self):
        super().__init__()
        hertz = torch.linspace(0, SAMPLE_RATE / 2, self.FFT // 2 + 1)
        centres = self.LOWEST_HZ * 2 ** (torch.arange(self.BANDS)[:, None] / 3)
        inside = (hertz >= centres * 2 ** (-1 / 6)) & (hertz < centres * 2 ** (1 / 6))
        self.register_buffer("bands", inside.float())
        self.register_buffer("hann", torch.hann_window(self.WINDOW))

    def _envelopes(self, wav: Tensor) -> Tensor:
        """[B, T] -> [B, bands, frames]."""
        spectrum = torch.stft(wav, self.FFT, self.HOP, self.WINDOW, self.hann, return_complex=True)
        return (self.bands @ (spectrum.real.square() + spectrum.imag.square()) + 1e-7).sqrt()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Both [B, T] -> scalar."""
        x, y = self._envelopes(target), self._envelopes(output)
        energy = 10 * x.square().sum(1).log10()
        peak = energy.amax(1, keepdim=True)
        speech = ((energy > peak - self.RANGE_DB) & (peak > -10)).float()
        weight = speech.unfold(1, self.SEGMENT, self.STRIDE).mean(2).square()[:, None]  # [B, 1, S]
        x, y = (v.unfold(2, self.SEGMENT, self.STRIDE) for v in (x, y))  # [B, bands, S, SEGMENT]
        y = y * (x.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True))
        y = torch.minimum(y, x * self.CLIP)
        x, y = (v - v.mean(-1, keepdim=True) for v in (x, y))
        correlation = F.cosine_similarity(x, y, dim=-1, eps=1e-5).mean(1, keepdim=True)
        return 1 - (correlation * weight).sum() / weight.sum().clamp(min=1.0)


def cosine(part: float, step: int, warmup: int, floor: float = 0.01) -> float:
    """Learning-rate factor: linear warm-up over steps, and half a cosine down to `floor` over the `part` of the training done."""
    return min(1.0, (step + 1) / max(1, warmup)) * (
        floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, part)))
    )
