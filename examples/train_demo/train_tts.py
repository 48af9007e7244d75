"""Training of text-to-speech: when the next word begins, and the sound `DELAY_STEPS` after the text."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lm import Lm, LmConfig
from .loop import Pace, train
from .rates import FRAME_RATE
from .speakers import TTS_VOICES
from .train_lm import bfloat16, corrupt, depth_loss, slips, some_of, weighted_loss
from .tts_data import AHEAD, DELAY_STEPS, STEPS, Readings

SLOTS = 2  # speakers in one text


PACE = Pace(steps=6_000, learning_rate=2.0e-3, warmup=200)


@dataclass(frozen=True)
class TtsTraining:
    pace: Pace = PACE
    batch: int = 96
    depth_share: float = 0.6  # of all steps, at most
    semantic_weight: float = 2.0
    text_weight: float = 0.3
    corruption: float = 0.05  # of the codes it reads


def tts_config(vocabulary: int) -> LmConfig:
    return LmConfig(
        text_card=vocabulary, text_card_out=5, n_q=8, dep_q=8, delays=(0, 0, *[2] * 7), context=STEPS, speaker_dim=16,
        depth_dim=192, depth_heads=3, depth_feedforward=288, depth_schedule=(0, 1, 2, 3, 3, 3, 3, 3),
    )  # fmt: skip


MODEL_ID = dict(sig="demo", epoch=1)
TTS_JSON = dict(
    tts_config=dict(audio_delay=DELAY_STEPS / FRAME_RATE, second_stream_ahead=AHEAD, max_speakers=SLOTS),
    model_id=MODEL_ID,
    lm_gen_config=dict(temp=0.6, temp_text=0.6, top_k=250, top_k_text=25),
)


class Voices(nn.Module):
    """One vector for each voice of text-to-speech; they become the voice files."""

    def __init__(self, dim: int):
        super().__init__()
        self.vectors = nn.Parameter(torch.randn(len(TTS_VOICES), dim))


def train_tts(
    readings: Readings, lm: Lm, voices: Voices, out: Path, plan: TtsTraining, seed: int, graph: bool = True
) -> int:
    """Train or resume; the steps done."""
    torch.manual_seed(seed)

    def losses() -> dict[str, Tensor]:
        return tts_losses(lm, voices, *readings.batch(plan.batch), plan)

    return train("text-to-speech", out, dict(lm=lm, voices=voices), losses, plan.pace, graph)


def tts_losses(
    lm: Lm,
    voices: Voices,
    codes: Tensor,
    felt: Tensor,
    asked: Tensor,
    speakers: Tensor,
    learnt: Tensor,
    plan: TtsTraining,
) -> dict[str, Tensor]:
    """codes [B, 9, T], the same as the model hears itself, asked and learnt [B, T], speakers [B, 2] -> losses.

    Model time t predicts column t + 1.
    """
    cfg = lm.cfg
    inputs, targets = lm.delayed(felt)[:, :, :-1], lm.delayed(codes)[:, :, 1:]
    source = lm.voices(F.embedding(speakers.clamp(min=0), voices.vectors), speakers >= 0)
    with bfloat16(codes.device):
        hidden = lm.trunk(corrupt(inputs, cfg, plan.corruption, 0.0), source)
        text_logits = lm.text_linear(hidden)
    text = weighted_loss(text_logits, asked.clamp(min=0), (asked >= 0).float())
    at, weight = some_of(learnt, int(plan.depth_share * learnt.numel()))
    known = targets[:, : cfg.dep_q + 1].transpose(1, 2).flatten(0, 1).index_select(0, at)
    with bfloat16(codes.device):
        logits = lm.depth_logits(hidden.flatten(0, 1).index_select(0, at), slips(known[:, :-1], cfg, plan.corruption))
    audio_loss, audio = depth_loss(logits, known[:, 1:], weight, plan.semantic_weight)
    return dict(total=audio_loss + plan.text_weight * text, text=text, semantic=audio[0], acoustic=audio[1:].mean())
