"""Scenes made into codes, all on one device: mixed, sent through channels and the codec."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .channel import channel
from .codec import Codec
from .progress import Progress
from .scene import Scene
from .takes import Takes

BATCH = {"cpu": 4}
LARGE_BATCH = 48


def mixed(sound: Tensor, scenes: Sequence[Scene], fade: int = 0) -> Tensor:
    """Scenes of one length and the takes' samples, int16 -> [S, T] float32; a take cut short is faded over `fade` samples."""
    wavs = torch.zeros(len(scenes), scenes[0].length, device=sound.device)
    for wav, scene in zip(wavs, scenes, strict=True):
        for p in scene.placed:
            length = min(p.stop - p.at, p.take.length)
            part = sound[p.take.at : p.take.at + length].float() / 32767
            if fade and length < p.take.length:
                n = min(fade, length)
                part[-n:] *= torch.linspace(1, 0, n, device=sound.device)
            wav[p.at : p.at + length] += part
    return wavs


def encode_scenes(
    codec: Codec, takes: Takes, scenes: Sequence[Scene], name: str, through_channel: bool, fade: int = 0
) -> np.ndarray:
    """Codes uint8 [S, n_q, F] of scenes of one length, through a random channel each where that is asked for."""
    device = next(codec.parameters()).device
    sound, size = torch.from_numpy(takes.sound).to(device), BATCH.get(device.type, LARGE_BATCH)
    out = []
    with Progress(name, len(scenes), "scenes") as progress:
        for i in range(0, len(scenes), size):
            part = scenes[i : i + size]
            x = mixed(sound, part, fade)
            codes = codec.encode((channel(x) if through_channel else x)[:, None])
            out.append(codes.to(torch.uint8).cpu().numpy())
            progress.advance(len(part))
    return np.concatenate(out)
