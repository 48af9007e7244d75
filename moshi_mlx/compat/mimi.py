"""`Mimi`: the codec with one stream of its own, as scripts of the published package use it.

Code that handles several streams, or wants to save or fork one, uses `MimiModel`'s functions and keeps the state itself.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .. import arguments
from ..audio.samples import as_samples, refuse_nonsense
from ..checkpoint.model_files import load_mimi_file
from ..config import MimiConfig
from ..engine.state import let_go
from ..errors import InputError
from ..models.mimi_model import MimiModel
from .caches import Cache, caches


class Mimi(MimiModel):
    """`encode` and `decode` take whole recordings; `encode_step` and `decode_step` continue this object's one stream."""

    def __init__(self, cfg: MimiConfig):
        super().__init__(cfg)
        self.reset_all()

    def reset_all(self) -> None:
        """Forget the stream, both sides."""
        self._forget_encoder()
        self._forget_decoder()

    def _forget_encoder(self) -> None:
        self._encoder_state: dict | None = None

    def _forget_decoder(self) -> None:
        self._decoder_state: dict | None = None

    reset_state = reset_all

    @property
    def encoder_cache(self) -> list[Cache]:
        """To be reset before other sound is encoded; the other side goes on."""
        return caches(self.cfg.transformer.num_layers, self._forget_encoder)

    @property
    def decoder_cache(self) -> list[Cache]:
        """To be reset before other codes are decoded; the other side goes on."""
        return caches(self.cfg.transformer.num_layers, self._forget_decoder)

    def encode(self, xs: mx.array, num_codebooks: int | None = None) -> mx.array:
        """A whole recording `[B, 1, T]` -> `[B, K, ceil(T / 1920)]`; the stream is not touched."""
        return super().encode(xs, num_codebooks)

    def decode(self, xs: mx.array) -> mx.array:
        """All codes of a recording `[B, K, F]` -> `[B, 1, F * 1920]`; the stream is not touched."""
        return super().decode(self._codes(xs))

    def encode_step(self, xs: mx.array) -> mx.array:
        """The next sound `[B, 1, F * 1920]` of the stream -> codes `[B, K, F]`."""
        pcm = mx.array(refuse_nonsense(as_samples(xs)))
        state = self._encoder_state or self.init_encoder(_rows(pcm))
        self._check_rows(pcm, state)
        codes, self._encoder_state = self.encode_chunk(pcm, state)
        let_go(state)
        mx.eval(codes, self._encoder_state)
        return codes

    def decode_step(self, xs: mx.array) -> mx.array:
        """The next codes `[B, K, F]` of the stream -> sound `[B, 1, F * 1920]`."""
        codes = self._codes(xs)
        state = self._decoder_state or self.init_decoder(_rows(codes))
        self._check_rows(codes, state)
        pcm, self._decoder_state = self.decode_chunk(codes, state)
        let_go(state)
        mx.eval(pcm, self._decoder_state)
        return pcm

    def _codes(self, xs: Any) -> mx.array:
        return mx.array(arguments.tokens("codes", xs, 0, self.cfg.bins - 1), mx.int32)

    @staticmethod
    def _check_rows(x: mx.array, state: dict) -> None:
        rows = state["resample"]["tail"].shape[0]
        if _rows(x) != rows:
            raise InputError(f"this stream has {rows} rows, found {_rows(x)}; reset_all begins another.")

    def warmup(self) -> None:
        """Compile the kernels of both sides; the stream is not touched."""
        mx.eval(self.decode(self.encode(mx.zeros((1, 1, self.frame_size)))))

    def load_pytorch_weights(self, file: str, strict: bool = True) -> nn.Module:
        """Load a published codec file, Kyutai or transformers names."""
        load_mimi_file(self, file, strict=strict)
        return self


def _rows(x: mx.array) -> int:
    return x.shape[0] if x.ndim else 1
