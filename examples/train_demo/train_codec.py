"""Training of the codec: reconstruct speech through 8 codes a frame.

Three phases, because quantising from the start collapses the codebooks to a few entries:
without the quantiser; with codebooks seeded by k-means, skipped on some steps; always on.
"""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checkpoint import TrainState
from .codec import Codec, CodecConfig
from .corpus import STEP, held_out_utterances
from .losses import EnvelopeLoss, SpectralLoss, cosine
from .metrics import intelligibility
from .progress import Progress
from .rates import SAMPLE_RATE


@dataclass(frozen=True)
class CodecTraining:
    steps: int = 18_000
    batch: int = 6
    clip_steps: int = 24  # latent steps of 40 ms: longer than the attention window
    learning_rate: float = 1.2e-3
    warmup: int = 300
    quantise_from: float = 0.201  # as a part of all steps
    always_quantise_from: float = 0.65
    skip_quantiser: float = 0.25  # share of steps between the two
    fewer_levels: float = 0.15  # share of quantised steps with part of the acoustic stack
    envelope_from: float = 0.2  # the spectral shape comes first
    envelope_weight: float = 2.0
    phoneme_weight: float = 0.15
    commitment_weight: float = 0.5
    eval_every: int = 1000

    def going_on(self) -> "CodecTraining":
        """The schedule for a codec that has been trained before: always quantised, half the steps."""
        phases = dict(quantise_from=-1.0, always_quantise_from=0.0, envelope_from=0.0)
        return replace(self, steps=self.steps // 2, **phases)


class PhonemeHead(nn.Module):
    """Reads what is being said from the semantic codebook alone, two labels a frame.

    It only exists in training: it makes the first codebook carry the sounds of speech rather
    than the voice, which is what the language model needs to understand many voices.
    """

    def __init__(self, dim: int, classes: int):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(dim, 128, 1), nn.GELU(), nn.Conv1d(128, 2 * classes, 1))

    def forward(self, semantic: Tensor, labels: Tensor) -> Tensor:
        """semantic [B, D, F], labels [B, 2 F] -> cross entropy."""
        batch, _, frames = semantic.shape
        logits = self.net(semantic).view(batch, 2, -1, frames)  # [B, 2, classes, F]
        return F.cross_entropy(logits.permute(0, 3, 1, 2).flatten(0, 2), labels.flatten().long())


class Clips:
    """Random aligned clips of the corpus."""

    def __init__(self, folder: Path, length: int):
        self.audio = np.load(folder / "audio.npy", mmap_mode="r")
        self.labels = np.load(folder / "labels.npy")
        self.classes = len(json.loads((folder / "phonemes.json").read_text()))
        self.length = length

    def batch(self, rng: np.random.Generator, count: int) -> tuple[Tensor, Tensor]:
        """wav [B, 1, 960 L] float32, labels [B, L]."""
        at = rng.integers(0, len(self.labels) - self.length, count)
        wav = np.stack([self.audio[i * STEP : (i + self.length) * STEP] for i in at])
        labels = np.stack([self.labels[i : i + self.length] for i in at])
        return torch.from_numpy(wav.astype(np.float32) / 32767)[:, None], torch.from_numpy(labels)


def train_codec(
    corpus: Path, out: Path, cfg: CodecConfig, plan: CodecTraining, seed: int, start: Codec | None = None
) -> Codec:
    """Train or resume, from `start` where it is given; the result is `out/state.pt`, the history `out/log.jsonl`."""
    torch.manual_seed(seed)
    random.seed(seed)
    clips = Clips(corpus, plan.clip_steps)
    codec, spectral, envelope = Codec(cfg) if start is None else start.train(), SpectralLoss(), EnvelopeLoss()
    if start is not None:
        plan = plan.going_on()
    head = PhonemeHead(cfg.dimension, clips.classes)
    parameters = [*codec.parameters(), *head.parameters()]
    optimiser = torch.optim.AdamW(parameters, plan.learning_rate, (0.8, 0.99), weight_decay=0.01, fused=True)
    state = TrainState(out, dict(codec=codec, head=head, optimiser=optimiser))
    rng = np.random.default_rng(seed)
    step = state.resume(rng)
    tests = held_out_utterances(24)
    with Progress("codec", plan.steps, "steps", step) as progress:
        while step < plan.steps:
            part = step / plan.steps
            for group in optimiser.param_groups:
                group["lr"] = plan.learning_rate * cosine(step, plan.steps, plan.warmup)
            if step == int(plan.quantise_from * plan.steps):
                _seed_codebooks(codec, clips, rng)
            wav, labels = clips.batch(rng, plan.batch)
            losses = _losses(codec, head, spectral, envelope, wav, labels, plan, part, rng)
            optimiser.zero_grad(set_to_none=True)
            losses["total"].backward()
            norm = nn.utils.clip_grad_norm_(parameters, 20.0)
            optimiser.step()
            step += 1
            progress.advance(1, f"loss {losses['total'].item():.2f}")
            if step % 50 == 0:
                state.log(step, norm=norm.item(), **{k: v.item() for k, v in losses.items()})
            if step % plan.eval_every == 0 or step == plan.steps:
                state.log(step, **evaluate_codec(codec, tests, part >= plan.quantise_from))
            state.save_sometimes(step, rng, force=step == plan.steps)
    return codec


def _losses(codec, head, spectral, envelope, wav, labels, plan, part, rng) -> dict[str, Tensor]:
    quantise, levels = part >= plan.quantise_from, None
    if quantise and part < plan.always_quantise_from:
        quantise = rng.random() >= plan.skip_quantiser
    if quantise and rng.random() < plan.fewer_levels:
        levels = int(rng.integers(1, codec.cfg.n_q - 1))
    quantised, semantic, commitment = codec.quantizer(codec.latent(wav), quantise, levels)
    output = codec.synthesize(quantised)
    mel = spectral(output[:, 0], wav[:, 0])
    wave = (output - wav).abs().mean()
    phonemes = head(semantic, labels)
    shape = envelope(output[:, 0], wav[:, 0]) if part >= plan.envelope_from else mel.new_ones(())
    total = (
        mel + wave + plan.envelope_weight * shape + plan.phoneme_weight * phonemes
        + plan.commitment_weight * commitment
    )  # fmt: skip
    return dict(total=total, mel=mel, wave=wave, envelope=shape, phonemes=phonemes, commitment=commitment)


@torch.no_grad()
def _seed_codebooks(codec: Codec, clips: Clips, rng: np.random.Generator) -> None:
    codec.eval()
    latents = [codec.latent(clips.batch(rng, 16)[0]) for _ in range(40)]
    codec.quantizer.init_kmeans(torch.cat(latents))
    codec.train()


@torch.no_grad()
def evaluate_codec(codec: Codec, tests: list[tuple[str, np.ndarray]], quantise: bool) -> dict:
    """Mean STOI over (text, wav [T]) utterances, and how many entries the codebooks use."""
    codec.eval()
    scores, used = [], [set() for _ in range(codec.cfg.n_q)]
    for _, wav in tests:
        x = F.pad(torch.from_numpy(wav), (0, -len(wav) % (2 * STEP)))[None, None]
        if quantise:
            codes = codec.encode(x)
            for entries, row in zip(used, codes[0], strict=True):
                entries.update(row.tolist())
            y = codec.decode(codes)
        else:
            y = codec.synthesize(codec.quantizer(codec.latent(x), False)[0])
        scores.append(intelligibility(wav, y[0, 0].numpy(), SAMPLE_RATE))
    codec.train()
    return dict(stoi=float(np.mean(scores)), stoi_min=min(scores), used=[len(u) for u in used])
