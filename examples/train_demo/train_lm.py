"""Training of the language model on sessions of two streams and aligned text."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import TrainState
from .lm import PAD, Lm, LmConfig
from .lm_data import Recitations, Sessions
from .losses import cosine
from .progress import Progress
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class LmTraining:
    steps: int = 14_000
    batch: int = 6
    learning_rate: float = 1.5e-3
    warmup: int = 300
    weight_decay: float = 0.1
    pad_weight: float = 0.3  # of a column where nothing is said, in the text loss
    silent_depth_share: float = 0.06  # of silent frames that the depth transformer learns from
    semantic_weight: float = 2.0  # of codebook 0; the others weigh 1
    audio_weight: float = 0.5  # of the mean over codebooks, against the text
    heard_weight: float = 0.5  # of the user's words
    recited: int = 2  # further sessions of text alone in a batch
    total_weight: float = 0.2  # of their totals
    # Wrong tokens in the input make the model robust to its own slips and to unheard voices.
    user_corruption: float = 0.06  # at most this part of the user's codes, another for each session
    own_corruption: float = 0.02
    bfloat16: bool = True
    eval_every: int = 2000


def train_lm(data: Path, tokenizer: Tokenizer, out: Path, cfg: LmConfig, plan: LmTraining, seed: int, test=None) -> Lm:
    """Train or resume; `test(lm) -> dict` is logged from time to time."""
    torch.manual_seed(seed)
    sessions, recitations, lm = Sessions(data), Recitations(data, tokenizer), Lm(cfg)
    # Only in training: reads the user's words from the hidden state, each a frame after its end.
    # Answers alone say too little, and too late, about what was heard.
    ear = nn.Linear(cfg.dim, cfg.text_card, bias=False)
    parameters = [*lm.parameters(), *ear.parameters()]
    matrices = [p for p in parameters if p.ndim == 2]
    vectors = [p for p in parameters if p.ndim != 2]
    groups = [dict(params=matrices, weight_decay=plan.weight_decay),
              dict(params=vectors, weight_decay=0.0)]  # fmt: skip
    optimiser = torch.optim.AdamW(groups, plan.learning_rate, (0.9, 0.97), fused=True)
    state = TrainState(out, dict(lm=lm, ear=ear, optimiser=optimiser))
    rng = np.random.default_rng(seed)
    step = state.resume(rng)
    with Progress("language model", plan.steps, "steps", step) as progress:
        while step < plan.steps:
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate * cosine(step, plan.steps, plan.warmup)
            talks, recited = sessions.batch(rng, plan.batch), recitations.batch(rng, plan.recited)
            losses = lm_losses(lm, ear, *talks, *recited, plan)
            optimiser.zero_grad(set_to_none=True)
            losses["total"].backward()
            norm = nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            step += 1
            progress.advance(1, f"text {losses['text']:.3f} semantic {losses['semantic']:.3f}")
            if step % 50 == 0:
                state.log(step, norm=norm.item(), **{k: v.item() for k, v in losses.items()})
            if test and (step % plan.eval_every == 0 or step == plan.steps):
                lm.eval()
                state.log(step, **test(lm))
                lm.train()
            state.save_sometimes(step, rng, force=step == plan.steps)
    return lm


def lm_losses(
    lm: Lm,
    ear: nn.Linear,
    codes: Tensor,
    heard: Tensor,
    active: Tensor,
    recited: Tensor,
    totals: Tensor,
    plan: LmTraining,
) -> dict[str, Tensor]:
    """codes [B, 17, F], heard and active [B, F]; recited [R, 17, F], totals [R, F] -> losses.

    Model time t predicts column t + 1.
    """
    cfg, talks = lm.cfg, len(codes)
    columns = lm.delayed(torch.cat([codes, recited]))
    inputs, targets = columns[:, :, :-1], columns[:, :, 1:]
    cast = torch.autocast("cpu", torch.bfloat16) if plan.bfloat16 else contextlib.nullcontext()
    with cast:
        hidden = lm.trunk(corrupt(inputs, cfg, plan))
        text_logits, heard_logits = lm.text_linear(hidden), ear(hidden[:talks])
    total_loss = F.cross_entropy(text_logits[talks:][totals].float(), recited[:, 0][totals])
    text_logits, hidden, targets = text_logits[:talks], hidden[:talks], targets[:talks]
    text_loss = _text_loss(text_logits, targets[:, 0], plan)
    heard_loss = _text_loss(heard_logits, heard, plan)

    chosen = active | (torch.rand(active.shape) < plan.silent_depth_share)
    chosen[:, : max(cfg.delays)] = False  # there the delayed codebooks are still initial tokens
    known = targets[:, : cfg.dep_q + 1].transpose(1, 2)[chosen]  # [N, 1 + dep_q]
    with cast:
        logits = lm.depth_logits(hidden[chosen], _random_tokens(known[:, :-1], cfg, plan))
    audio = (
        F.cross_entropy(logits.float().flatten(0, 1), known[:, 1:].flatten(), reduction="none")
        .view(-1, cfg.dep_q)
        .mean(0)
    )
    importance = torch.ones(cfg.dep_q)
    importance[0] = plan.semantic_weight
    audio_loss = (audio * importance).sum() / importance.sum()
    total = text_loss + plan.audio_weight * audio_loss + plan.heard_weight * heard_loss + plan.total_weight * total_loss
    return dict(
        total=total, text=text_loss, heard=heard_loss, totals=total_loss, semantic=audio[0], acoustic=audio[1:].mean()
    )  # fmt: skip


def _text_loss(logits: Tensor, text: Tensor, plan: LmTraining) -> Tensor:
    """Cross entropy of logits [B, F, V] against text [B, F]; silence weighs less."""
    weight = torch.where(text == PAD, plan.pad_weight, 1.0)
    loss = F.cross_entropy(logits.float().transpose(1, 2), text, reduction="none")
    return (loss * weight).sum() / weight.sum()


def corrupt(inputs: Tensor, cfg: LmConfig, plan: LmTraining) -> Tensor:
    """Replace some audio tokens [B, K, T] by random ones; the text and initial tokens stay."""
    batch, channels, _ = inputs.shape
    rate = torch.zeros(batch, channels, 1)
    rate[:, 1 : 1 + cfg.dep_q] = plan.own_corruption
    rate[:, 1 + cfg.dep_q :] = torch.rand(batch, 1, 1) * plan.user_corruption
    hit = (torch.rand(inputs.shape) < rate) & (inputs < cfg.card)
    hit[:, 0] = False
    return torch.where(hit, torch.randint(cfg.card, inputs.shape), inputs)


def _random_tokens(known: Tensor, cfg: LmConfig, plan: LmTraining) -> Tensor:
    """The same for the depth transformer's inputs [N, dep_q], whose column 0 is text."""
    hit = torch.rand(known.shape) < plan.own_corruption
    hit[:, 0] = False
    return torch.where(hit, torch.randint(cfg.card, known.shape), known)
