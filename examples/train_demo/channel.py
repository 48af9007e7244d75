"""The way from a user's mouth to the model, for a whole batch at once on any device: room, microphone, noise, other
talkers, telephones, Bluetooth, gain, clipping. Signals are [B, T] float32 at 24 kHz; each row gets a channel of its own.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .rates import SAMPLE_RATE


@dataclass(frozen=True)
class ChannelMix:
    """Shares of rows that get each effect, and ranges in dB."""

    clean: float = 0.25  # nothing but gain
    room: float = 0.4
    microphone: float = 0.5
    telephone: float = 0.15
    bluetooth: float = 0.15
    noise: float = 0.6
    talkers: float = 0.12
    clipping: float = 0.07
    gain_db: tuple[float, float] = (-16.0, 10.0)  # of takes at -20 dB
    noise_db: tuple[float, float] = (-45.0, -8.0)  # below the speech
    talkers_db: tuple[float, float] = (-32.0, -16.0)


def channel(wav: Tensor, mix: ChannelMix | None = None) -> Tensor:
    """wav [B, T] at the level of the takes -> [B, T] as the microphone gives it. Draws from torch's generator."""
    mix = mix or ChannelMix()
    rows, device = len(wav), wav.device
    dirty = torch.rand(rows, 1, device=device) >= mix.clean

    def chosen(share: float) -> Tensor:
        return dirty & (torch.rand(rows, 1, device=device) < share)

    def db(low: float, high: float) -> Tensor:
        return 10 ** ((low + (high - low) * torch.rand(rows, 1, device=device)) / 20)

    level = 0.1  # the takes' -20 dB
    x = wav
    others = (x.roll(1, 0).roll(SAMPLE_RATE, 1) + x.roll(2, 0).roll(-SAMPLE_RATE, 1)) * db(*mix.talkers_db)
    x = torch.where(chosen(mix.talkers), x + others, x)
    x = _filter(x, _response(x.shape[-1], rows, device, chosen(mix.microphone), chosen(mix.telephone)))
    x = torch.where(chosen(mix.room), _room(x), x)
    x = torch.where(chosen(mix.noise), x + level * db(*mix.noise_db) * _noise(x), x)
    x = torch.where(chosen(mix.bluetooth), _coded(x), x)
    x = x * db(*mix.gain_db)
    x = torch.where(chosen(mix.clipping), (4 * x).clamp(-0.5, 0.5), x)
    return x.clamp(-1, 1)


def _filter(x: Tensor, response: Tensor) -> Tensor:
    """x [B, T] through responses [B, T / 2 + 1] without delay."""
    return torch.fft.irfft(torch.fft.rfft(x) * response, n=x.shape[-1])


def _hertz(length: int, device) -> Tensor:
    return torch.linspace(0, SAMPLE_RATE / 2, length // 2 + 1, device=device)


def _response(length: int, rows: int, device, microphone: Tensor, telephone: Tensor) -> Tensor:
    """Magnitudes [B, T / 2 + 1]: a tilt and two gentle bumps of a microphone, the band of an 8 or 16 kHz line."""
    hertz = _hertz(length, device).clamp(min=20.0)
    octaves = (hertz / 1000).log2()
    gain = torch.zeros(rows, len(octaves), device=device)
    rand = torch.rand(4, 3, rows, 1, device=device)
    gain = gain + (rand[0, 0] - 0.5) * 4 * octaves  # up to 2 dB an octave
    for k in (1, 2):
        centre, width, height = rand[k, 0] * 6 - 3, 0.4 + rand[k, 1], (rand[k, 2] - 0.5) * 16
        gain = gain + height * torch.exp(-(((octaves - centre) / width) ** 2))
    low, high = 50 * 2 ** (2.5 * rand[3, 0]), 12_000 * 2 ** (-1.6 * rand[3, 1])
    gain = gain - 12 * (low / hertz).log2().clamp(0, 5) - 24 * (hertz / high).log2().clamp(0, 4)
    gain = torch.where(microphone, gain, 0.0)
    narrow = rand[3, 2] < 0.5
    low, high = torch.where(narrow, 300.0, 60.0), torch.where(narrow, 3400.0, 7200.0)
    line = -80 * (low / hertz).log2().clamp(0, 1) - 80 * (hertz / high).log2().clamp(0, 1)
    return 10 ** ((gain + torch.where(telephone, line, 0.0)) / 20)


def _room(x: Tensor) -> Tensor:
    """Direct sound and an exponentially decaying tail that begins 2 ms later."""
    rows, length = x.shape
    longest = SAMPLE_RATE // 2
    seconds = torch.arange(longest, device=x.device) / SAMPLE_RATE
    t60 = 0.12 + 0.45 * torch.rand(rows, 1, device=x.device)
    tail = torch.randn(rows, longest, device=x.device) * 10 ** (-3 * seconds / t60)
    tail[:, : SAMPLE_RATE // 500].fill_(0)
    tail = (
        tail * (0.1 + 0.6 * torch.rand(rows, 1, device=x.device)) / (tail.square().sum(1, keepdim=True).sqrt() + 1e-9)
    )
    size = length + longest
    echo = torch.fft.irfft(torch.fft.rfft(x, n=size) * torch.fft.rfft(tail, n=size), n=size)
    return x + echo[:, :length]


def _noise(x: Tensor) -> Tensor:
    """Noise of unit power with a random slope (white to brown), sometimes a hum, sometimes coming and going."""
    rows, length = x.shape
    hertz = _hertz(length, x.device).clamp(min=30.0)
    slope = 1.1 * torch.rand(rows, 1, device=x.device)
    noise = _filter(torch.randn_like(x), (hertz / 1000) ** -slope)
    seconds = torch.arange(length, device=x.device) / SAMPLE_RATE
    mains = torch.where(torch.rand(rows, 1, device=x.device) < 0.5, 50.0, 60.0)
    hum = sum(torch.sin(2 * math.pi * n * mains * seconds) / n for n in (1, 2, 3, 5))
    noise = noise / (noise.std(1, keepdim=True) + 1e-9)
    noise = noise + torch.where(torch.rand(rows, 1, device=x.device) < 0.15, hum, 0.0)
    pace, phase = (torch.rand(rows, 1, device=x.device) * f for f in (1.5, 2 * math.pi))
    swell = (0.5 + torch.sin(2 * math.pi * pace * seconds + phase)).clamp(0.1, 1.5)
    return torch.where(torch.rand(rows, 1, device=x.device) < 0.3, noise * swell, noise)


def _coded(x: Tensor) -> Tensor:
    """What a headset's codec adds: noise in every band, some 12 to 25 dB below what is there, and no sound above 7.5 kHz."""
    size, hop = 256, 64
    window = torch.hann_window(size, device=x.device)
    length = -(-x.shape[-1] // hop) * hop
    spectrum = torch.stft(F.pad(x, (0, length - x.shape[-1])), size, hop, window=window, return_complex=True)
    power = spectrum.abs().square().unsqueeze(1)
    near = F.avg_pool2d(power, (9, 5), 1, (4, 2))[:, 0].sqrt()
    depth = 10 ** (-(12 + 13 * torch.rand(len(x), 1, 1, device=x.device)) / 20)
    noise = torch.complex(torch.randn_like(near), torch.randn_like(near)) * (near * depth * 0.7)
    spectrum = spectrum + noise
    spectrum = spectrum * (torch.arange(spectrum.shape[1], device=x.device) < 80)[:, None]
    # Overlap and add: the library's own inverse looks at its numbers, which a recorded step may not.
    frames = torch.fft.irfft(spectrum, n=size, dim=1) * window[:, None]
    added = F.fold(frames, (1, length + size), (1, size), stride=(1, hop))[:, 0, 0]
    return added[:, size // 2 : size // 2 + x.shape[-1]] / (window.square().sum() / hop)
