"""`Lm`: the language model with what scripts of the published package call on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..checkpoint.model_files import load_lm_file
from ..config import LmConfig
from ..engine.generate import LmGen
from ..engine.step import Guidance, Step, call_hook, cross_keys_values
from ..errors import InputError
from ..models.lm_model import LmModel
from ..modules.conditioner import ConditionTensor, add_cross_positions
from ..modules.embedding import TokenEmbedding
from ..modules.sampling import Sampler
from .caches import Cache, caches


class ScaledEmbedding(TokenEmbedding):
    """A token embedding by the published names. Token -1 embeds as zero; no other token can."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        zero_idx: int = -1,
        low_rank: int | None = None,
        demux_second_stream: bool = False,
    ):
        if zero_idx != -1:
            raise InputError(f"the token that embeds as zero is -1 in every model, {zero_idx} was asked for.")
        super().__init__(num_embeddings, embedding_dim, low_rank, demux_second_stream)
        width = self.weight.shape[1]
        self.weight = mx.random.normal(self.weight.shape, scale=width**-0.5)
        self.num_embeddings, self.zero_idx, self.demux_second_stream = num_embeddings, zero_idx, demux_second_stream


class Lm(LmModel):
    """A `LmModel` that loads files itself and keeps one stream of its own. Made without weights; `LmGen` steps it."""

    def __init__(self, cfg: LmConfig):
        super().__init__(cfg)
        self.reset_stream()

    def load_pytorch_weights(self, file: str, lm_config: LmConfig | None = None, strict: bool = True) -> nn.Module:
        """Load a file in the published PyTorch (or Candle) layout. `lm_config` is this model's own."""
        load_lm_file(self, file, strict=strict)
        return self

    def load_weights(self, file_or_weights: Any, strict: bool = True) -> nn.Module:
        """Load a file in the published MLX layout, or a list of (name, array)."""
        if not isinstance(file_or_weights, str):
            return super().load_weights(file_or_weights, strict=strict)
        load_lm_file(self, file_or_weights, strict=strict)
        return self

    def warmup(self, ct: Any = None) -> None:
        """Run one frame, so that kernels are compiled before the first real one. Leaves no trace."""
        gen = LmGen(self, max_steps=1)
        gen.step(mx.zeros((1, self.cfg.other_codebooks), mx.int32), ct)
        mx.eval(gen.state)

    # The stream of this object ---------------------------------------------------------------------------------------

    def reset_stream(self) -> None:
        """Forget what `forward_text` and `sample` were given."""
        self._stream: dict | None = None
        self._position = 0

    @property
    def transformer_cache(self) -> list[Cache]:
        """To be reset before another stream begins. A `LmGen` remembers its own conversation, and a new one begins anew."""
        return caches(len(self.transformer.layers), self.reset_stream)

    @property
    def depformer_cache(self) -> list[Cache]:
        """Nothing is remembered from frame to frame here."""
        return []

    def forward_text(
        self, token_ids: mx.array, cross_attention_src: mx.array | None = None
    ) -> tuple[mx.array, mx.array]:
        """The next text tokens `[B, T]` of the stream -> hidden `[B, T, d]` and text logits `[B, T, text_card_out]`."""
        hidden = self._continue(self.text_emb(token_ids, self.dtype), cross_attention_src)
        return hidden, self.text_linear(hidden)

    def sample(
        self,
        text_token_ids: mx.array,
        audio_token_ids: Sequence[mx.array],
        text_sampler: Sampler,
        audio_sampler: Sampler,
        ct: ConditionTensor | None = None,
        cross_attention_src: mx.array | None = None,
        cfg_coef: float = 1.0,
        on_text_hook: Callable[[mx.array], Any] | None = None,
        on_audio_hook: Callable[[mx.array], Any] | None = None,
    ) -> tuple[mx.array, mx.array | None]:
        """The next frame of the stream, without the delays that `LmGen` knows of.

        Text `[B, 1]` and, for each audio channel, `[1, B]` of the frame before -> text `[B, 1]` and audio `[B, dep_q, 1]`, None for
        a model that generates none. Hooks see what is returned and may change it in place.
        """
        rows = text_token_ids.shape[0]
        channels = [text_token_ids.reshape(rows), *(ids.reshape(rows) for ids in audio_token_ids)]
        channels += [mx.full((rows,), -1, mx.int32)] * (self.num_codebooks - len(channels))
        x = self.embed(mx.stack(channels[: self.num_codebooks], axis=1)[..., None])
        if ct is not None:
            x = x + (ct.tensor[:, None] if ct.tensor.ndim == 2 else ct.tensor).astype(x.dtype)
        guidance = Guidance(cfg_coef)
        copies = 2 if guidance.active else 1
        hidden = self._continue(mx.tile(x, (copies, 1, 1)), cross_attention_src)
        text, _ = text_sampler(guidance.mix(self.text_linear(hidden)))
        text = call_hook(on_text_hook, text)
        if not self.dep_q:
            return text, None
        drawn: list[mx.array] = []

        def choose(k: int, logits: mx.array) -> mx.array:
            token, _ = audio_sampler(guidance.mix(logits))
            drawn.append(token)
            return mx.tile(token, (copies,))

        self.depformer(hidden, mx.tile(text[:, 0], (copies,)), choose)
        return text, call_hook(on_audio_hook, mx.stack(drawn, axis=1)[..., None])

    def _continue(self, x: mx.array, source: mx.array | None) -> mx.array:
        """The trunk over the next `x [B', T, d]`, its rings grown as needed."""
        step = Step(self, compile=False)
        state = self._stream
        if state is None:
            state = step.init_state([0] * x.shape[0], step.capacities(x.shape[0])[0])["trunk"]
        state = step.with_room(state, self._position + x.shape[1] - 1)
        cross = None if source is None else cross_keys_values(self, add_cross_positions(self.cfg.fuser, source))
        hidden, self._stream = self.trunk(x, state, cross)
        self._position += x.shape[1]
        return hidden
