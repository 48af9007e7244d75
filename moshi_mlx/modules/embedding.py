"""Token embeddings with the rules of the family (lm.md 2.2 and 2.3): token -1 embeds as exactly zero, always."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class _Embedding(nn.Module):
    """The rules, whatever the table is made of; `rows` reads it."""

    _demux = False
    _rows_count: int

    def rows(self, tokens: mx.array) -> mx.array:
        """Rows of non-negative `tokens`."""
        raise TypeError

    def _vectors(self, tokens: mx.array) -> mx.array:
        """Rows with the norm applied and -1 zeroed: `[..., width]`."""
        y = self.rows(mx.maximum(tokens, 0))
        if "norm" in self:
            y = self.norm(y)
        return mx.where((tokens < 0)[..., None], 0, y).astype(y.dtype)

    def __call__(self, tokens: mx.array) -> mx.array:
        """`tokens [...]` int -> `[..., dim]`."""
        if self._demux:
            return self._two_streams(tokens)
        y = self._vectors(tokens)
        return self.low_rank(y) if "low_rank" in self else y

    def _two_streams(self, tokens: mx.array) -> mx.array:
        """`tokens = (second + 1) * rows + main`, `second` in -1 .. rows - 1 (lm.md 2.3)."""
        code = mx.maximum(tokens, 0)
        main = code % self._rows_count
        second = code // self._rows_count - 1
        # Where the whole code is -1, `main` would read row 0: -1 there makes both terms zero.
        main = mx.where(tokens < 0, -1, main)
        return self.out1(self._vectors(main)) + self.out2(self._vectors(second))


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

    def rows(self, tokens: mx.array) -> mx.array:
        return self.weight[tokens]

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

    def rows(self, tokens: mx.array) -> mx.array:
        biases = self.get("biases")
        # In float32, so that q * scale + bias is not rounded to the type of the scales before the caller's cast.
        return mx.dequantize(
            self.weight[tokens],
            _widen(self.scales[tokens]),
            None if biases is None else _widen(biases[tokens]),
            self.group_size,
            self.bits,
            self.mode,
        )


def _widen(x: mx.array) -> mx.array:
    return x if x.dtype == mx.uint8 else x.astype(mx.float32)
