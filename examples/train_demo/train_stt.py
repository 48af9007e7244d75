"""Training of speech-to-text: the text of what was said `DELAY_FRAMES` ago, and whether the speaker pauses."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .lm import Lm, LmConfig
from .loop import Pace, train
from .rates import FRAME_RATE
from .stt_data import DELAY_FRAMES, PAUSES_S, Talks
from .train_lm import bfloat16, corrupt, text_channel_loss, weighted_loss

PACE = Pace(steps=5_000, learning_rate=2.0e-3, warmup=200)


@dataclass(frozen=True)
class SttTraining:
    pace: Pace = PACE
    batch: int = 64
    pad_weight: float = 0.3
    pause_weight: float = 0.2
    corruption: float = 0.08  # at most this part of the codes, another for each talk
    # Of the text tokens it reads: what it wrote may be wrong, and it should listen rather than guess.
    text_corruption: float = 0.1


def stt_config(vocabulary: int) -> LmConfig:
    return LmConfig(text_card=vocabulary, n_q=8, dep_q=0, delays=(0,) * 9, extra_heads=len(PAUSES_S))


STT_JSON = dict(
    stt_config=dict(audio_delay_seconds=DELAY_FRAMES / FRAME_RATE, audio_silence_prefix_seconds=0.0),
    lm_gen_config=dict(temp=0.0, temp_text=0.0, top_k=250, top_k_text=50),
)


def train_stt(talks: Talks, lm: Lm, out: Path, plan: SttTraining, seed: int, graph: bool = True) -> int:
    """Train or resume; the steps done."""
    torch.manual_seed(seed)

    def losses() -> dict[str, Tensor]:
        return stt_losses(lm, *talks.batch(plan.batch), plan)

    return train("speech-to-text", out, dict(lm=lm), losses, plan.pace, graph)


def stt_losses(lm: Lm, codes: Tensor, pauses: Tensor, plan: SttTraining) -> dict[str, Tensor]:
    """codes [B, 9, F], pauses [B, 4, F]. Model time t has heard the frames before t and predicts the text of column t."""
    cfg = lm.cfg
    columns = lm.delayed(codes)
    inputs, targets = corrupt(columns[:, :, :-1], cfg, 0.0, plan.corruption), columns[:, :, 1:]
    wrong = torch.rand(inputs[:, 0].shape, device=inputs.device) < plan.text_corruption
    other = targets[:, 0].roll(1, 0)  # another talk's text at the same time
    inputs = torch.cat([torch.where(wrong, other, inputs[:, 0])[:, None], inputs[:, 1:]], 1)
    with bfloat16(codes.device):
        hidden = lm.trunk(inputs)
        logits = lm.text_linear(hidden)
        heads = torch.stack([head(hidden) for head in lm.extra_heads], 1)  # [B, 4, F, 6]
    text = text_channel_loss(logits, targets[:, 0], plan.pad_weight)
    # At time t the sound up to frame t - 1 is known.
    known = pauses[:, :, :-1]
    later = heads[:, :, 1:].flatten(0, 1)
    pause = weighted_loss(later, known.flatten(0, 1), torch.ones_like(known.flatten(0, 1), dtype=torch.float32))
    return dict(total=text + plan.pause_weight * pause, text=text, pause=pause)
