"""Token embeddings with the rules of the family (lm.md 2.2 and 2.3): token -1 embeds as exactly zero, always."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from .matrix import Matrix


class _Embedding(nn.Module):
    """The rules, whatever the table is made of."""

    _demux = False
    _rows_count: int

    @property
    def is_plain(self) -> bool:
        """A table and nothing else."""
        return not any(part in self for part in ("norm", "low_rank", "out1"))

    def _vectors(self, tokens: mx.array, dtype: mx.Dtype | None, never_zero: bool = False) -> mx.array:
        """Rows with the norm applied and -1 zeroed: `[..., width]`."""
        y = Matrix.of(self).rows(tokens if never_zero else mx.maximum(tokens, 0), dtype)
        if "norm" in self:
            y = self.norm(y)
        if never_zero:
            return y
        return mx.where((tokens < 0)[..., None], 0, y).astype(y.dtype)

    def __call__(self, tokens: mx.array, dtype: mx.Dtype | None = None, never_zero: bool = False) -> mx.array:
        """`tokens [...]` int -> `[..., dim]` in `dtype` (None: as stored). `never_zero` promises that no token is -1."""
        if self._demux:
            return self._two_streams(tokens, dtype)
        y = self._vectors(tokens, dtype, never_zero)
        return self.low_rank(y) if "low_rank" in self else y

    def _two_streams(self, tokens: mx.array, dtype: mx.Dtype | None) -> mx.array:
        """`tokens = (second + 1) * rows + main`, `second` in -1 .. rows - 1 (lm.md 2.3)."""
        code = mx.maximum(tokens, 0)
        main = code % self._rows_count
        second = code // self._rows_count - 1
        # Where the whole code is -1, `main` would read row 0: -1 there makes both terms zero.
        main = mx.where(tokens < 0, -1, main)
        return self.out1(self._vectors(main, dtype)) + self.out2(self._vectors(second, dtype))


class TokenEmbedding(_Embedding):
    """Table `[rows, width]`.

    Optional parts: `norm` (layer norm of each row), `low_rank` (`width` to `dim`), and, where two token streams share one
    integer, `out1` and `out2`, which replace `low_rank`. A table with such parts is never quantised itself.
    """

    def __init__(self, rows: int, dim: int, low_rank: int | None = None, demux: bool = False, norm: bool = False):
        super().__init__()
        width = low_rank or dim
        self.weight = mx.zeros((rows, width))
        self._demux, self._rows_count = demux, rows
        if norm:
            self.norm = nn.LayerNorm(width, eps=1e-5)
        if low_rank is not None:
            # Present in published files also beside out1 and out2, which then stand in for it.
            self.low_rank = nn.Linear(low_rank, dim, bias=False)
        if demux:
            self.out1 = nn.Linear(width, dim, bias=False)
            self.out2 = nn.Linear(width, dim, bias=False)

    @property
    def dtype(self) -> mx.Dtype:
        return self.weight.dtype

    def to_quantized(self, group_size: int | None = None, bits: int | None = None, mode: str = "affine", **_):
        """Called by `nn.quantize` on tables without parts."""
        return QuantizedTokenEmbedding(self.weight, group_size, bits, mode)


class QuantizedTokenEmbedding(_Embedding):
    """The same table, quantised along its rows; the -1 rule holds as before."""

    def __init__(self, weight: mx.array, group_size: int | None, bits: int | None, mode: str):
        super().__init__()
        self._rows_count = weight.shape[0]
        self.weight, self.scales, *biases = mx.quantize(weight, group_size, bits, mode=mode)
        self.biases = biases[0] if biases else None
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.freeze()

    @property
    def dtype(self) -> mx.Dtype:
        return self.scales.dtype if self.scales.dtype != mx.uint8 else mx.bfloat16
