"""In training a model hears some other recording of the words that it says; `same_words.py` tells why."""

import numpy as np
import torch
from torch import Tensor

from .same_words import SameWords, same_words


class Exchange:
    """Draws, for sessions whose words are `text` [N, F], where each frame is heard from: in a `share` of the words somewhere else."""

    def __init__(self, text: np.ndarray, pad: int, share: float, device: torch.device):
        self.share = share
        self.words = SameWords(*(torch.from_numpy(a).to(device) for a in same_words(text, pad)))

    def draw(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Sessions [B] -> for each frame [B, F] the session and the frame that it is heard from."""
        words = self.words
        group, since = words.group[at].long(), words.since[at].long()
        length = group.shape[1]
        frames = torch.arange(length, device=at.device).expand_as(group)
        # One draw for all frames of a word.
        which, whether = (torch.rand(group.shape, device=at.device).gather(1, frames - since) for _ in range(2))
        known = group.clamp(min=0)
        elsewhere = words.places[words.first[known] + (which * words.count[known]).long()] + since
        place = torch.where((group >= 0) & (whether < self.share), elsewhere, at[:, None] * length + frames)
        return place // length, place % length
