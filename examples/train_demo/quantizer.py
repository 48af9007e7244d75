"""Split residual vector quantiser: one semantic codebook and a residual acoustic stack.

Both parts read the same latent through their own projection. Codebooks follow moving averages
of the vectors assigned to them; entries nobody uses are moved onto live vectors.
"""

import torch
from torch import Tensor, nn

DECAY = 0.99
# An entry whose moving usage share falls below this part of the fair share is replaced.
DEAD_SHARE = 0.03


class Codebook(nn.Module):
    """`bins` centroids kept as (sum, usage), as in the published file."""

    def __init__(self, dim: int, bins: int):
        super().__init__()
        self.register_buffer("_initialized", torch.zeros(1))
        self.register_buffer("cluster_usage", torch.ones(bins))
        self.register_buffer("embedding_sum", torch.zeros(bins, dim))

    @property
    def centroids(self) -> Tensor:
        return self.embedding_sum / self.cluster_usage.clamp(min=1e-5)[:, None]

    def nearest(self, x: Tensor, centroids: Tensor) -> Tensor:
        """x [N, dim] -> index [N] of the nearest centroid (lowest index on ties)."""
        return (centroids.square().sum(1) / 2 - x @ centroids.T).argmin(1)

    @torch.no_grad()
    def init_kmeans(self, x: Tensor, rounds: int = 20) -> None:
        """Lloyd's algorithm from random members of x [N, dim]; N must exceed `bins`."""
        bins = len(self.cluster_usage)
        centroids = x[torch.randperm(len(x), device=x.device)[:bins]].clone()
        for _ in range(rounds):
            index = self.nearest(x, centroids)
            count = torch.bincount(index, minlength=bins).float()
            total = torch.zeros_like(centroids).index_add_(0, index, x)
            spare = x[torch.randperm(len(x), device=x.device)[:bins]]
            centroids = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], spare)
        self.cluster_usage.fill_(1.0)
        self.embedding_sum.copy_(centroids)
        self._initialized.fill_(1.0)

    @torch.no_grad()
    def update(self, x: Tensor, index: Tensor) -> None:
        """One moving-average step with the batch's vectors, then revive dead entries."""
        bins = len(self.cluster_usage)
        count = torch.zeros_like(self.cluster_usage).index_add_(0, index, torch.ones_like(x[:, 0]))
        # Usage is kept relative to the fair share, so that `ones` means balanced.
        scale = bins / len(x)
        total = torch.zeros_like(self.embedding_sum).index_add_(0, index, x)
        usage = self.cluster_usage.mul_(DECAY).add_(count, alpha=(1 - DECAY) * scale)
        sums = self.embedding_sum.mul_(DECAY).add_(total, alpha=(1 - DECAY) * scale)
        # No look at the numbers here: the step is recorded and replayed on a GPU.
        dead = usage < DEAD_SHARE
        donors = x[torch.randint(len(x), (bins,), device=x.device)]
        self.embedding_sum.copy_(torch.where(dead[:, None], 0.3 * donors, sums))
        self.cluster_usage.copy_(torch.where(dead, 0.3, usage))


class ResidualQuantizer(nn.Module):
    """`levels` codebooks in a residual chain, between two 1x1 projections."""

    def __init__(self, dim: int, codebook_dim: int, bins: int, levels: int):
        super().__init__()
        self.input_proj = nn.Conv1d(dim, codebook_dim, 1, bias=False)
        self.output_proj = nn.Conv1d(codebook_dim, dim, 1, bias=False)
        nn.init.orthogonal_(self.input_proj.weight)
        nn.init.orthogonal_(self.output_proj.weight)
        books = [nn.ModuleDict({"_codebook": Codebook(codebook_dim, bins)}) for _ in range(levels)]
        self.vq = nn.ModuleDict({"layers": nn.ModuleList(books)})

    @property
    def codebooks(self) -> list[Codebook]:
        return [layer["_codebook"] for layer in self.vq["layers"]]

    def project(self, latent: Tensor) -> Tensor:
        """[B, dim, F] -> [B * F, codebook_dim]."""
        return self.input_proj(latent).transpose(1, 2).flatten(0, 1)

    def unproject(self, flat: Tensor, batch: int) -> Tensor:
        """[B * F, codebook_dim] -> [B, dim, F]."""
        return self.output_proj(flat.unflatten(0, (batch, -1)).transpose(1, 2))

    def indices(self, flat: Tensor, learn: bool = False) -> Tensor:
        """flat [N, codebook_dim] -> codes [levels, N]; `learn` moves the codebooks."""
        residual, codes = flat.detach(), []
        for book in self.codebooks:
            centroids = book.centroids
            index = book.nearest(residual, centroids)
            if learn:
                book.update(residual, index)
            residual = residual - centroids[index]
            codes.append(index)
        return torch.stack(codes)

    def lookup(self, codes: Tensor, active: Tensor | None = None) -> Tensor:
        """codes [levels, N] -> [N, codebook_dim]; of column n only the first `active[n]` levels."""
        parts = [book.centroids[c] for book, c in zip(self.codebooks, codes, strict=True)]
        if active is not None:
            parts = [part * (active > level)[:, None] for level, part in enumerate(parts)]
        return sum(parts)

    @torch.no_grad()
    def init_kmeans(self, latent: Tensor) -> None:
        residual = self.project(latent)
        for book in self.codebooks:
            book.init_kmeans(residual)
            residual = residual - book.centroids[book.nearest(residual, book.centroids)]


class SplitResidualQuantizer(nn.Module):
    def __init__(self, dim: int, codebook_dim: int, bins: int, n_q: int):
        super().__init__()
        self.rvq_first = ResidualQuantizer(dim, codebook_dim, bins, 1)
        self.rvq_rest = ResidualQuantizer(dim, codebook_dim, bins, n_q - 1)

    def forward(self, latent: Tensor, quantise: bool, levels: Tensor | None = None):
        """Training pass with straight-through gradients.

        latent [B, D, F] -> (latent for the decoder [B, D, F], its semantic part [B, D, F],
        commitment loss). `levels` [B] limits the acoustic stack, for each row.
        """
        batch, parts, commitment = len(latent), [], latent.new_zeros(())
        for rvq, active in ((self.rvq_first, None), (self.rvq_rest, levels)):
            flat = rvq.project(latent)
            active = None if active is None else active.repeat_interleave(latent.shape[-1])
            if quantise:
                codes = rvq.indices(flat, learn=self.training)
                target = rvq.lookup(codes, active)
                # Relative to the spread of the codes: nothing fixes the latent's scale, and an
                # absolute distance grows with it until the encoder overshoots and diverges.
                error = (flat - target).square().mean()
                commitment = commitment + error / target.var().clamp(min=1e-6).detach()
                flat = flat + (target - flat).detach()
            parts.append(rvq.unproject(flat, batch))
        return parts[0] + parts[1], parts[0], commitment

    def init_kmeans(self, latent: Tensor) -> None:
        self.rvq_first.init_kmeans(latent)
        self.rvq_rest.init_kmeans(latent)

    def encode(self, latent: Tensor) -> Tensor:
        """[B, D, F] -> codes [B, n_q, F]."""
        batch = len(latent)
        rows = [rvq.indices(rvq.project(latent)) for rvq in (self.rvq_first, self.rvq_rest)]
        return torch.cat(rows).unflatten(1, (batch, -1)).transpose(0, 1)

    def decode(self, codes: Tensor) -> Tensor:
        """codes [B, n_q, F] -> [B, D, F]."""
        flat = codes.transpose(0, 1).flatten(1)
        first = self.rvq_first.unproject(self.rvq_first.lookup(flat[:1]), len(codes))
        return first + self.rvq_rest.unproject(self.rvq_rest.lookup(flat[1:]), len(codes))
