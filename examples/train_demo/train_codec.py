"""Training of the codec: reconstruct speech through 8 codes a frame.

A codec that begins from nothing first learns without the quantiser, because quantising from the start collapses the
codebooks to a few entries; then the codebooks are seeded by k-means.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .channel import channel
from .codec import Codec, CodecConfig
from .corpus import Corpus
from .loop import Pace, train
from .losses import EnvelopeLoss, SpectralLoss
from .phones import PHONES

PACE = Pace(steps=9_000, learning_rate=1.0e-3, warmup=200, betas=(0.8, 0.99), weight_decay=0.01, clip=20.0)


@dataclass(frozen=True)
class CodecTraining:
    pace: Pace = PACE
    users: int = 44  # clips in a batch: of users, through a channel; of Moshi; of the voices of text-to-speech
    own: int = 10
    readers: int = 10
    clip_steps: int = 24  # latent steps of 40 ms: longer than the attention window
    fewer_levels: float = 0.15  # share of clips with part of the acoustic stack
    bare_share: float = 0.2  # of the pace, without the quantiser, when the codec begins from nothing
    envelope_weight: float = 2.0
    phoneme_weight: float = 0.15
    commitment_weight: float = 0.5


class PhonemeHead(nn.Module):
    """Reads what is being said from the semantic codebook alone, two labels a frame.

    It only exists in training: it makes the first codebook carry the sounds of speech rather
    than the voice, which is what the language model needs to understand many voices.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(dim, 128, 1), nn.GELU(), nn.Conv1d(128, 2 * len(PHONES), 1))

    def forward(self, semantic: Tensor, labels: Tensor) -> Tensor:
        """semantic [B, D, F], labels [B, 2 F] -> cross entropy."""
        batch, _, frames = semantic.shape
        logits = self.net(semantic).view(batch, 2, -1, frames)  # [B, 2, classes, F]
        return F.cross_entropy(logits.permute(0, 3, 1, 2).flatten(0, 2), labels.flatten().long())


@dataclass
class Speech:
    """What the codec hears: `users`, Moshi's `own` voice, the `readers` of text-to-speech."""

    users: Corpus
    own: Corpus
    readers: Corpus

    def batch(self, plan: CodecTraining) -> tuple[Tensor, Tensor]:
        """wav [B, 1, 960 L], labels [B, L]."""
        parts = [
            corpus.clips(count, plan.clip_steps)
            for corpus, count in ((self.users, plan.users), (self.own, plan.own), (self.readers, plan.readers))
        ]
        wavs = [channel(parts[0][0]), parts[1][0], parts[2][0]]
        return torch.cat(wavs)[:, None], torch.cat([labels for _, labels in parts])


def train_codec(
    speech: Speech,
    out: Path,
    plan: CodecTraining,
    seed: int,
    device: torch.device,
    start: Codec | None,
    graph: bool = True,
) -> Codec:
    """Train or resume, from `start` where it is given; histories are `out/*/log.jsonl`."""
    torch.manual_seed(seed)
    codec = (Codec(CodecConfig()) if start is None else start).to(device).train()
    head, spectral, envelope = (
        PhonemeHead(codec.cfg.dimension).to(device),
        SpectralLoss().to(device),
        EnvelopeLoss().to(device),
    )
    modules = dict(codec=codec, head=head)

    def losses(quantise: bool) -> dict[str, Tensor]:
        wav, labels = speech.batch(plan)
        levels = _levels(len(wav), codec.cfg.n_q - 1, plan.fewer_levels, device) if quantise else None
        quantised, semantic, commitment = codec.quantizer(codec.latent(wav), quantise, levels)
        output = codec.synthesize(quantised)
        mel, wave = spectral(output[:, 0], wav[:, 0]), (output - wav).abs().mean()
        phonemes, shape = head(semantic, labels), envelope(output[:, 0], wav[:, 0])
        total = (
            mel + wave + plan.envelope_weight * shape + plan.phoneme_weight * phonemes
            + plan.commitment_weight * commitment
        )  # fmt: skip
        return dict(total=total, mel=mel, wave=wave, envelope=shape, phonemes=phonemes, commitment=commitment)

    pace = plan.pace
    if start is None:
        share = plan.bare_share
        bare = replace(pace, steps=int(share * pace.steps), seconds=pace.seconds and share * pace.seconds)
        pace = replace(pace, steps=pace.steps - bare.steps, seconds=pace.seconds and (1 - share) * pace.seconds)
        if not (out / "quantised" / "state.pt").exists():
            train("codec, bare", out / "bare", modules, lambda: losses(False), bare, graph)
            with torch.no_grad():
                latents = [codec.latent(speech.batch(plan)[0]) for _ in range(12)]
                codec.quantizer.init_kmeans(torch.cat(latents))
    train("codec", out / "quantised", modules, lambda: losses(True), pace, graph)
    return codec


def _levels(rows: int, most: int, share: float, device: torch.device) -> Tensor:
    """How many levels of the acoustic stack each row uses: all, or for a `share` of the rows a random number."""
    fewer = torch.randint(1, most, (rows,), device=device)
    return torch.where(torch.rand(rows, device=device) < share, fewer, most)
