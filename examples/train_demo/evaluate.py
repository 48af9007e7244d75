"""Right answers while the language model trains; what is shipped is measured by `measure.py`."""

import numpy as np
import torch

from .codec import Codec
from .generate import Sampling, converse
from .lm import Lm
from .tokenizer import Tokenizer
from .trials import Trial


@torch.no_grad()
def text_accuracy(codec: Codec, lm: Lm, tokenizer: Tokenizer, trials: list[Trial], batch: int = 40) -> dict:
    """Share of right answers by kind, from the text channel alone."""
    right: dict[str, list[bool]] = {}
    for i in range(0, len(trials), batch):
        part = trials[i : i + batch]
        wav = torch.from_numpy(np.stack([t.wav for t in part]))[:, None]
        codes = torch.cat([codec.encode(some) for some in wav.split(8)])
        text, _ = converse(lm, codes, Sampling())
        for trial, ids in zip(part, text, strict=True):
            right.setdefault(trial.kind, []).append(tokenizer.decode(ids) == trial.answer)
    return {f"right_{kind}": float(np.mean(flags)) for kind, flags in right.items()}
