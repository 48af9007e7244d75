"""Mimi, the streaming codec: weights and pure functions of (audio or codes, state) (mimi.md).

24 kHz mono audio `[B, 1, T]` in -1..1 <-> codes `[B, K, F]` int32, one column per frame of 1920 samples. A stream's state
has a fixed size; encoding and decoding have independent states. The attention window is the exact one: streaming gives
what the whole sequence at once gives, for every chunking.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from ..config.parts import MimiConfig
from ..errors import InputError
from ..modules.conv import CausalConv, CausalConvTranspose, DepthwiseUpsample
from ..modules.quantization import SplitResidualQuantizer
from ..modules.seanet import SeanetDecoder, SeanetEncoder
from ..modules.transformer import Transformer
from .step_weights import StepWeights

# Offline calls walk through the sequence in pieces: memory stays bounded and the result is the same.
OFFLINE_FRAMES = 64


class MimiTransformer(nn.Module):
    """The published file nests the stack one level deeper."""

    def __init__(self, cfg: MimiConfig):
        super().__init__()
        self.transformer = Transformer(cfg.transformer, stride=cfg.stride)


class MimiModel(nn.Module):
    def __init__(self, cfg: MimiConfig):
        super().__init__()
        dim = cfg.seanet.dimension
        self._config = cfg
        self.encoder = SeanetEncoder(cfg.seanet)
        self.encoder_transformer = MimiTransformer(cfg)
        self.downsample = CausalConv(dim, dim, 2 * cfg.stride, stride=cfg.stride, bias=False, replicate=True)
        self.quantizer = SplitResidualQuantizer(cfg.num_codebooks, cfg.n_semantic, dim, cfg.codebook_dim, cfg.bins)
        self.upsample = DepthwiseUpsample(dim, cfg.stride)
        self.decoder_transformer = MimiTransformer(cfg)
        self.decoder = SeanetDecoder(cfg.seanet)

    @property
    def cfg(self) -> MimiConfig:
        return self._config

    @property
    def sample_rate(self) -> int:
        return self.cfg.sample_rate

    @property
    def frame_rate(self) -> float:
        return self.cfg.frame_rate

    @property
    def frame_size(self) -> int:
        """Samples per frame (1920)."""
        return self.cfg.frame_size

    @property
    def num_codebooks(self) -> int:
        """Levels held, the largest K."""
        return self.cfg.num_codebooks

    def step_weights(self) -> StepWeights:
        """What encoding and decoding read."""
        quantizer = self.quantizer
        return StepWeights(
            self,
            {
                "quantizer.rvq_first.half_norms": quantizer.rvq_first,
                "quantizer.rvq_rest.half_norms": quantizer.rvq_rest,
            },
        )

    def transposed_parameters(self) -> list[str]:
        """Names of the kernels of transposed convolutions, which files store with other axes."""
        return [
            f"decoder.model.{i}.{leaf}"
            for i, layer in enumerate(self.decoder.model)
            if isinstance(layer, CausalConvTranspose)
            for leaf in ("weight", "bias")
        ]

    def _transformer_state(self, stack: Transformer, batch: int, lockstep: bool) -> dict:
        capacity = stack.capacity()
        if capacity is None:
            raise InputError("a codec without an attention window ('context' null) cannot stream.")
        return stack.init_state(batch, capacity, mx.float32, lockstep)

    def init_encoder(self, batch: int = 1, lockstep: bool = True) -> dict:
        """State of an encoder before its first frame. `lockstep`: rows advance together (else masks are allowed)."""
        return {
            "convs": self.encoder.init_state(batch),
            "transformer": self._transformer_state(self.encoder_transformer.transformer, batch, lockstep),
            "resample": self.downsample.init_state(batch),
        }

    def init_decoder(self, batch: int = 1, lockstep: bool = True) -> dict:
        return {
            "resample": self.upsample.init_state(batch),
            "transformer": self._transformer_state(self.decoder_transformer.transformer, batch, lockstep),
            "convs": self.decoder.init_state(batch),
        }

    def latents(self, pcm: mx.array, state: dict, execute: mx.array | None = None) -> tuple[mx.array, dict]:
        """`pcm [B, 1, F * 1920]` -> latent before quantisation `[B, F, dim]`."""
        x, convs = self.encoder(pcm.swapaxes(1, 2), state["convs"], execute)
        x, stack = self.encoder_transformer.transformer(x, state["transformer"], execute=execute)
        x, resample = self.downsample(x, state["resample"], execute)
        return x, {"convs": convs, "transformer": stack, "resample": resample}

    def encode_chunk(
        self, pcm: mx.array, state: dict, num_codebooks: int | None = None, execute: mx.array | None = None
    ) -> tuple[mx.array, dict]:
        """`pcm [B, 1, F * 1920]` -> `codes [B, K, F]` int32 and the new state.

        `execute` bool `[B]`: rows where it is false leave no trace and their codes mean nothing.
        """
        if pcm.ndim != 3 or pcm.shape[1] != 1 or pcm.shape[2] == 0 or pcm.shape[2] % self.frame_size:
            raise InputError(
                f"audio should have shape [B, 1, T], T a positive multiple of {self.frame_size} samples, found {list(pcm.shape)}."
            )
        x, state = self.latents(pcm, state, execute)
        return self.quantizer.encode(x, self._levels(num_codebooks)), state

    def decode_chunk(self, codes: mx.array, state: dict, execute: mx.array | None = None) -> tuple[mx.array, dict]:
        """`codes [B, K, F]` in 0 .. bins - 1, any K up to `num_codebooks` -> `pcm [B, 1, F * 1920]` and the new state.

        Special tokens of a language model (-1, 2048, ...) are not codes: the caller keeps them out.
        """
        if codes.ndim != 3 or codes.shape[2] == 0 or not 1 <= codes.shape[1] <= self.num_codebooks:
            raise InputError(f"codes should have shape [B, 1..{self.num_codebooks}, F], found {list(codes.shape)}.")
        x = self.quantizer.decode(codes)
        x, resample = self.upsample(x, state["resample"], execute)
        x, stack = self.decoder_transformer.transformer(x, state["transformer"], execute=execute)
        x, convs = self.decoder(x, state["convs"], execute)
        return x.swapaxes(1, 2), {"resample": resample, "transformer": stack, "convs": convs}

    def encode(self, pcm: mx.array, num_codebooks: int | None = None) -> mx.array:
        """A whole recording `[B, 1, T]` -> `[B, K, ceil(T / 1920)]`, the end padded with silence (mimi.md 5.2)."""
        if pcm.ndim != 3 or pcm.shape[2] == 0:
            raise InputError(f"audio should have shape [B, 1, T] with T above 0, found {list(pcm.shape)}.")
        pcm = mx.pad(pcm, [(0, 0), (0, 0), (0, -pcm.shape[2] % self.frame_size)])
        state, out = self.init_encoder(pcm.shape[0]), []
        size = OFFLINE_FRAMES * self.frame_size
        for start in range(0, pcm.shape[2], size):
            codes, state = self.encode_chunk(pcm[:, :, start : start + size], state, num_codebooks)
            mx.eval(codes, state)
            out.append(codes)
        return mx.concatenate(out, axis=-1)

    def decode(self, codes: mx.array) -> mx.array:
        """All codes of a recording `[B, K, F]` -> `[B, 1, F * 1920]`."""
        state, out = self.init_decoder(codes.shape[0]), []
        for start in range(0, max(codes.shape[-1], 1), OFFLINE_FRAMES):
            pcm, state = self.decode_chunk(codes[:, :, start : start + OFFLINE_FRAMES], state)
            mx.eval(pcm, state)
            out.append(pcm)
        return mx.concatenate(out, axis=-1)

    def _levels(self, num_codebooks: int | None) -> int:
        levels = self.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= levels <= self.num_codebooks:
            raise InputError(f"this codec holds {self.num_codebooks} codebooks, {levels} were asked for.")
        return levels


def with_own_clocks(state: dict, batch: int) -> dict:
    """The state of an encoder or decoder whose rows no longer have to advance together."""
    stack = state["transformer"]
    return {**state, "transformer": {**stack, "position": mx.broadcast_to(stack["position"], (batch,))}}
