"""Training of the dialogue model on sessions of two streams and aligned text."""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .domain import NUMBERS
from .lm import PAD, Lm, LmConfig
from .lm_data import SESSION_FRAMES, Dialogues, Recitations
from .loop import Pace, train

PACE = Pace(steps=5_000, learning_rate=2.0e-3, warmup=200)


@dataclass(frozen=True)
class LmTraining:
    pace: Pace = PACE
    batch: int = 64
    pad_weight: float = 0.3  # of a column where nothing is said, in the text loss
    silent_depth_share: float = 0.06  # of silent frames that the depth transformer learns from
    depth_share: float = 0.4  # of all frames, at most
    semantic_weight: float = 2.0  # of codebook 0; the others weigh 1
    audio_weight: float = 0.5  # of the mean over codebooks, against the text
    heard_weight: float = 0.5  # of the user's words
    recited: int = 16  # further sessions of text alone in a batch
    total_weight: float = 0.2  # of their totals
    # Wrong tokens in the input make the model robust to its own slips and to unheard voices.
    user_corruption: float = 0.06  # at most this part of the user's codes, another for each session
    own_corruption: float = 0.02


def train_lm(
    dialogues: Dialogues, recitations: Recitations, lm: Lm, out: Path, plan: LmTraining, seed: int, graph: bool = True
) -> int:
    """Train or resume; the steps done."""
    torch.manual_seed(seed)
    cfg, device = lm.cfg, next(lm.parameters()).device
    # Only in training: reads the user's words from the hidden state, each a frame after its end.
    # Answers alone say too little, and too late, about what was heard.
    ear = nn.Linear(cfg.dim, cfg.text_card, bias=False).to(device)

    digits = torch.tensor([recitations.tokenizer.piece("\u2581" + word) for word in NUMBERS[:10]], device=device)

    def losses() -> dict[str, Tensor]:
        return lm_losses(lm, ear, *dialogues.batch(plan.batch), *recitations.batch(plan.recited), digits, plan)

    return train("dialogue model", out, dict(lm=lm, ear=ear), losses, plan.pace, graph)


def bfloat16(device: torch.device):
    """Products in bfloat16; nothing is kept between them, which a recorded step could not repeat."""
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def lm_losses(
    lm: Lm,
    ear: nn.Linear,
    codes: Tensor,
    felt: Tensor,
    heard: Tensor,
    active: Tensor,
    apart: Tensor,
    recited: Tensor,
    totals: Tensor,
    digits: Tensor,
    plan: LmTraining,
) -> dict[str, Tensor]:
    """codes [B, 17, F], the same as Moshi hears itself, heard and active [B, F], apart [B, 2, F]; recited [R, 17, F], totals [R, F]; tokens of digits [10] -> losses.

    Model time t predicts column t + 1.
    """
    cfg, talks = lm.cfg, len(codes)
    inputs, targets = lm.delayed(torch.cat([felt, recited]))[:, :, :-1], lm.delayed(codes)[:, :, 1:]
    with bfloat16(codes.device):
        hidden = lm.trunk(corrupt(inputs, cfg, plan.own_corruption, plan.user_corruption))
        text_logits, heard_logits = lm.text_linear(hidden), ear(hidden[:talks])
    total_loss = weighted_loss(text_logits[talks:], recited[:, 0], totals.float())
    text_logits = without_digits(text_logits[:talks], digits, apart[:, 0])
    text_loss = text_channel_loss(text_logits, targets[:, 0], plan.pad_weight)
    heard_loss = text_channel_loss(without_digits(heard_logits, digits, apart[:, 1]), heard, plan.pad_weight)

    wanted = active | (torch.rand(active.shape, device=active.device) < plan.silent_depth_share)
    wanted[:, : max(cfg.delays)].fill_(False)  # there the delayed codebooks are still initial tokens
    at, weight = some_of(wanted, int(plan.depth_share * talks * SESSION_FRAMES))
    known = targets[:, : cfg.dep_q + 1].transpose(1, 2).flatten(0, 1).index_select(0, at)  # [N, 1 + dep_q]
    with bfloat16(codes.device):
        logits = lm.depth_logits(
            hidden[:talks].flatten(0, 1).index_select(0, at), slips(known[:, :-1], cfg, plan.own_corruption)
        )
    audio_loss, audio = depth_loss(logits, known[:, 1:], weight, plan.semantic_weight)
    total = text_loss + plan.audio_weight * audio_loss + plan.heard_weight * heard_loss + plan.total_weight * total_loss
    return dict(
        total=total, text=text_loss, heard=heard_loss, totals=total_loss, semantic=audio[0], acoustic=audio[1:].mean()
    )  # fmt: skip


def without_digits(logits: Tensor, digits: Tensor, apart: Tensor) -> Tensor:
    """Logits [B, F, V] in which the digits, tokens [10], whose bits are set in `apart` [B, F] are no choice."""
    hidden = (apart[..., None] >> torch.arange(len(digits), device=apart.device)) & 1 > 0
    return logits.index_copy(-1, digits, logits[..., digits].masked_fill(hidden, -1e4))


def some_of(wanted: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Flat indices [N] of true entries, at random and at most `most`, and their weights [N]: 0 for those that fill up.

    Their number is always the same, as a recorded step needs.
    """
    chance = torch.rand(wanted.shape, device=wanted.device) + wanted
    value, at = chance.flatten().topk(most)
    return at, (value >= 1).float()


def depth_loss(logits: Tensor, known: Tensor, weight: Tensor, semantic_weight: float) -> tuple[Tensor, Tensor]:
    """logits [N, K, card], codes [N, K] (outside of the vocabulary: not said), weights [N] -> loss, and the mean of each codebook [K]."""
    card = logits.shape[-1]
    said = ((known >= 0) & (known < card)) * weight[:, None]
    right = known.clamp(0, card - 1).flatten()
    loss = F.cross_entropy(logits.float().flatten(0, 1), right, reduction="none").view_as(said)
    mean = (loss * said).sum(0) / said.sum(0).clamp(min=1)
    importance = torch.ones_like(mean)
    importance[0].fill_(semantic_weight)
    return (mean * importance).sum() / importance.sum(), mean


def weighted_loss(logits: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Mean cross entropy of logits [B, F, V] against targets [B, F], by weight [B, F]."""
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(weight)
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def text_channel_loss(logits: Tensor, text: Tensor, pad_weight: float) -> Tensor:
    """The same for a text channel, in which silence weighs less."""
    return weighted_loss(logits, text, torch.where(text == PAD, pad_weight, 1.0))


def corrupt(inputs: Tensor, cfg: LmConfig, own: float, user: float) -> Tensor:
    """Replace a part of the audio tokens [B, K, T] by random ones; the text, initial and absent tokens stay."""
    batch, channels, _ = inputs.shape
    rate = torch.zeros(batch, channels, 1, device=inputs.device)
    rate[:, 1 : 1 + cfg.dep_q].fill_(own)
    rate[:, 1 + cfg.dep_q :] = torch.rand(batch, 1, 1, device=inputs.device) * user
    hit = (torch.rand(inputs.shape, device=inputs.device) < rate) & (inputs < cfg.card) & (inputs >= 0)
    return torch.where(hit, torch.randint(cfg.card, inputs.shape, device=inputs.device), inputs)


def slips(known: Tensor, cfg: LmConfig, rate: float) -> Tensor:
    """The same for the depth transformer's inputs [N, dep_q], whose column 0 is text."""
    hit = (torch.rand(known.shape, device=known.device) < rate) & (known >= 0)
    hit[:, 0].fill_(False)
    return torch.where(hit, torch.randint(cfg.card, known.shape, device=known.device), known)
