"""Scenes made into codes: rendered on the processor, sent through channels and the codec on the device."""

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from .channel import channel
from .codec import Codec
from .progress import Progress
from .scene import Scene
from .takes import Takes

BATCH = {"cpu": 4}
LARGE_BATCH = 48


def encode_scenes(
    codec: Codec, takes: Takes, scenes: Sequence[Scene], name: str, through_channel: bool, fade: int = 0
) -> np.ndarray:
    """Codes uint8 [S, n_q, F] of scenes of one length, through a random channel each where that is asked for."""
    device = next(codec.parameters()).device
    size = BATCH.get(device.type, LARGE_BATCH)
    out = []
    with Progress(name, len(scenes), "scenes") as progress, ThreadPoolExecutor(8) as pool:
        rendered = _ahead(pool, lambda scene: scene.render(takes, fade), scenes, 4 * size)
        while wavs := list(itertools.islice(rendered, size)):
            x = torch.from_numpy(np.stack(wavs)).to(device)
            codes = codec.encode((channel(x) if through_channel else x)[:, None])
            out.append(codes.to(torch.uint8).cpu().numpy())
            progress.advance(len(wavs))
    return np.concatenate(out)


def _ahead(pool: ThreadPoolExecutor, function, items: Sequence, count: int) -> Iterator:
    """`map` that works at most `count` items ahead."""
    todo = iter(items)
    waiting = [pool.submit(function, item) for item in itertools.islice(todo, count)]
    while waiting:
        done = waiting.pop(0)
        waiting += [pool.submit(function, item) for item in itertools.islice(todo, 1)]
        yield done.result()
