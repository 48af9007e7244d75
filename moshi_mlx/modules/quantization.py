"""Split residual vector quantiser (mimi.md section 6). Always float32: near-ties decide codes."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class ResidualQuantizer(nn.Module):
    """Levels that quantise, one after the other, what the levels before left over of the projected latent."""

    def __init__(self, levels: int, dim: int, codebook_dim: int, bins: int):
        super().__init__()
        self.input_proj = nn.Linear(dim, codebook_dim, bias=False)
        self.output_proj = nn.Linear(codebook_dim, dim, bias=False)
        # Centroids of each level, [bins, codebook_dim].
        self.codebooks = [mx.zeros((bins, codebook_dim)) for _ in range(levels)]
        self._norms: dict[int, tuple[mx.array, mx.array]] = {}

    def encode(self, latent: mx.array, levels: int) -> list[mx.array]:
        """`latent [B, F, dim]` -> codes `[B, F]` uint32 of the first `levels` levels; ties go to the lowest index."""
        residual = self.input_proj(latent)
        codes = []
        for level, e in enumerate(self.codebooks[:levels]):
            # argmin |r - e|^2 = argmin |e|^2 / 2 - r.e
            code = mx.argmin(self._half_norms(level) - residual @ e.T, axis=-1)
            residual = residual - e[code]
            codes.append(code)
        return codes

    def _half_norms(self, level: int) -> mx.array:
        """|e|^2 / 2 of the centroids of a level, `[bins]`: computed once, since a compiled function would do it in every frame."""
        centroids = self.codebooks[level]
        of, norms = self._norms.get(level, (None, None))
        if norms is None or of is not centroids:
            norms = 0.5 * mx.sum(centroids * centroids, axis=-1)
            mx.eval(norms)
            self._norms[level] = centroids, norms
        return norms

    def derived(self) -> dict[str, mx.array]:
        """What encoding reads beside the parameters, by level."""
        return {str(level): self._half_norms(level) for level in range(len(self.codebooks))}

    def put_derived(self, arrays: dict[str, mx.array]) -> None:
        """Others, which belong to the centroids that are there now."""
        self._norms = {int(level): (self.codebooks[int(level)], norms) for level, norms in arrays.items()}

    def decode(self, codes: mx.array) -> mx.array:
        """`codes [B, k, F]`, k at most the number of levels -> `[B, F, dim]`."""
        total = self.codebooks[0][codes[:, 0]]
        for level in range(1, codes.shape[1]):
            total = total + self.codebooks[level][codes[:, level]]
        return self.output_proj(total)


class SplitResidualQuantizer(nn.Module):
    """Semantic and acoustic quantisers side by side on the same latent; the semantic codes come first."""

    def __init__(self, levels: int, n_semantic: int, dim: int, codebook_dim: int, bins: int):
        super().__init__()
        self._n_semantic = n_semantic
        self.rvq_first = ResidualQuantizer(n_semantic, dim, codebook_dim, bins)
        self.rvq_rest = ResidualQuantizer(levels - n_semantic, dim, codebook_dim, bins)

    def encode(self, latent: mx.array, levels: int) -> mx.array:
        """`[B, F, dim]` -> codes `[B, levels, F]` int32."""
        codes = self.rvq_first.encode(latent, min(levels, self._n_semantic))
        if levels > self._n_semantic:
            codes = codes + self.rvq_rest.encode(latent, levels - self._n_semantic)
        return mx.stack(codes, axis=1).astype(mx.int32)

    def decode(self, codes: mx.array) -> mx.array:
        """`codes [B, K, F]`, any 1 <= K <= levels -> latent `[B, F, dim]`."""
        n = self._n_semantic
        y = self.rvq_first.decode(codes[:, :n])
        return y + self.rvq_rest.decode(codes[:, n:]) if codes.shape[1] > n else y
