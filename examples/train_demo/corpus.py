"""Sound for the codec: takes one after the other, with what is being said 25 times a second."""

import itertools
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .rates import FRAME_SIZE
from .takes import Take, Takes

STEP = 960  # samples per latent step of 40 ms, the grid of the phoneme labels
# With no look-ahead a step cannot know a sound that has just begun, so labels come later.
LABEL_DELAY = 480
GAP_FRAMES = 6  # at most, between takes


def phoneme_labels(take: Take, lead: int, total: int) -> np.ndarray:
    """uint8 [total // STEP]: the sound at each step's middle, `LABEL_DELAY` earlier."""
    labels = np.zeros(total // STEP, np.uint8)
    onsets = [*((lead + at, sound) for sound, at in take.phonemes), (lead + take.length, 0)]
    for (start, label), (stop, _) in itertools.pairwise(onsets):
        first, last = ((t + LABEL_DELAY - STEP // 2 + STEP - 1) // STEP for t in (start, stop))
        labels[max(0, first) : max(0, last)] = label
    return labels


@dataclass
class Corpus:
    """`sound` int16 [T], `labels` uint8 [T / 960], on one device."""

    sound: Tensor
    labels: Tensor

    def clips(self, count: int, steps: int) -> tuple[Tensor, Tensor]:
        """Random aligned clips: wav [B, 960 steps] float32, labels [B, steps]. They begin on a frame."""
        device = self.sound.device
        at = 2 * torch.randint(0, (len(self.labels) - steps) // 2, (count, 1), device=device)
        wav = self.sound[at * STEP + torch.arange(steps * STEP, device=device)]
        return wav.float() / 32767, self.labels[at + torch.arange(steps, device=device)]


def corpus_of(takes: Takes, seed: int, device: torch.device, aligned: bool) -> Corpus:
    """All takes with gaps between them; `aligned` ones begin on a frame, as Moshi's answers do."""
    rng = random.Random(seed)
    sounds, labels = [], []
    for take in takes.all:
        lead = rng.randint(0, GAP_FRAMES) * FRAME_SIZE if aligned else rng.randint(0, GAP_FRAMES * FRAME_SIZE)
        total = -(-(lead + take.length) // FRAME_SIZE) * FRAME_SIZE
        wav = np.zeros(total, np.int16)
        wav[lead : lead + take.length] = takes.sound[take.at : take.at + take.length]
        sounds.append(wav)
        labels.append(phoneme_labels(take, lead, total))
    return Corpus(*(torch.from_numpy(np.concatenate(x)).to(device) for x in (sounds, labels)))
