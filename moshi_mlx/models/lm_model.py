"""The language model: temporal transformer (Helium) and depth transformer (lm.md sections 2 and 4).

Architecture and weight names only. The tree of modules is that of the published MLX files, so that `load_weights` is
strict and `nn.quantize` works; everything that changes from step to step is passed in and returned.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..config.parts import LmConfig, TransformerConfig
from ..machine import device
from ..modules.attention import make_rotation, sin_embedding
from ..modules.conditioner import ConditionProvider
from ..modules.embedding import TokenEmbedding
from ..modules.kv_cache import attend
from ..modules.norm import make_norm
from ..modules.transformer import Transformer
from .packed import StackedLinears, StackedTables, unpacked_table
from .step_weights import StepWeights

# (codebook index, logits [B', card]) -> token [B'] that the next codebook reads
Choose = Callable[[int, mx.array], mx.array]


class DepFormerSlice(nn.Module):
    """The depth transformer as seen by one codebook: its embedding, input and output projections and layers."""

    def __init__(self, cfg: LmConfig, k: int):
        super().__init__()
        dep = cfg.depformer
        dim = dep.transformer.d_model
        self.emb = TokenEmbedding(
            cfg.text_in_vocab_size if k == 0 else cfg.card + 1,
            dim,
            low_rank=dep.low_rank_embeddings,
            demux=k == 0 and cfg.demux_second_stream,
            norm=cfg.norm_emb,
        )
        self.linear_in = nn.Linear(cfg.transformer.d_model, dim, bias=False)
        self.linear_out = nn.Linear(dim, cfg.card, bias=cfg.bias_proj)
        self.transformer = Transformer(dep.slice_transformer(k))
        if dep.norm is not None:
            self.norm = make_norm(dep.norm, dim)

    def head(self, y: mx.array) -> mx.array:
        """Logits `[B', card]` of `y [B', dim]`."""
        if "norm" in self:
            y = self.norm(y)
        return self.linear_out(y)


class DepFormer(nn.Module):
    def __init__(self, cfg: LmConfig):
        super().__init__()
        self._cfg: TransformerConfig = cfg.depformer.transformer
        self._input_sets = cfg.depformer.input_sets
        self._inputs: StackedLinears | None = None
        self.slices = [DepFormerSlice(cfg, k) for k in range(cfg.dep_q)]

    def prepare(self, dtype: mx.Dtype) -> None:
        """Pack the input projections into one product and the codebooks' tables into plain rows."""
        sets = max(self._input_sets, default=-1) + 1
        self._inputs = StackedLinears.of([self.slices[self._input_sets.index(w)].linear_in for w in range(sets)])
        for part in self.slices[1:]:
            part.emb = unpacked_table(part.emb, dtype)

    @property
    def stacked_inputs(self) -> StackedLinears | None:
        """The input projections as one product, once they are prepared."""
        return self._inputs

    def inputs(self, z: mx.array, steps: int) -> list[mx.array]:
        """The projection of `z [B', d]` that each of the first `steps` codebooks reads; shared ones computed once."""
        needed = max(self._input_sets[:steps], default=-1) + 1
        if self._inputs is not None:
            every = self._inputs(z, needed)
            return [every[self._input_sets[k]] for k in range(steps)]
        done: dict[int, mx.array] = {}
        for k in range(steps):
            w = self._input_sets[k]
            if w not in done:
                done[w] = self.slices[k].linear_in(z)
        return [done[self._input_sets[k]] for k in range(steps)]

    def step(
        self, k: int, x: mx.array, token: mx.array, caches: list, steps: int, chosen: bool
    ) -> tuple[mx.array, list]:
        """Codebook `k` of `steps`: `x [B', dd]` from `inputs`, `token [B']` -> logits `[B', card]` and the frame's caches."""
        part = self.slices[k]
        x = x + part.emb(token, x.dtype, never_zero=chosen)
        if self._cfg.positional_embedding in ("sin", "sin_rope"):
            x = x + sin_embedding(mx.array([k]), self._cfg.d_model, self._cfg.max_period).astype(x.dtype)
        new = []
        rotate = make_rotation(self._cfg, mx.array(k, mx.int32), x.shape[0], 1)
        for layer, cache in zip(part.transformer.layers, caches, strict=True):
            x, cache = layer(x, partial(_frame_attend, cache=cache, k=k, steps=steps), rotate)
            new.append(cache)
        return part.head(x), new

    def __call__(
        self, z: mx.array, text_token: mx.array, choose: Choose, steps: int | None = None, chosen: bool = False
    ) -> list[mx.array]:
        """Generate one frame: `z [B', 1, d]`, `text_token [B']`; returns what `choose` returned, per codebook.

        `chosen` promises that `choose` returns sampled tokens: never -1, which then need not be looked for.
        """
        steps = len(self.slices) if steps is None else steps
        caches: list = [None] * self._cfg.num_layers
        token, tokens = text_token, []
        for k, x in enumerate(self.inputs(z[:, 0], steps)):
            logits, caches = self.step(k, x, token, caches, steps, chosen and k > 0)
            token = choose(k, logits)
            tokens.append(token)
        return tokens


def _frame_attend(q: mx.array, kv: mx.array, cache: mx.array | None, k: int, steps: int) -> tuple[mx.array, mx.array]:
    """Attention inside one frame: codebook `k` of `steps` sees those before it. `kv [2, B', H, 1, D]`, the cache `[2, B', H, steps, D]`.

    A place in one array is one kernel for each codebook, where growing it would be two and copy what is there.
    """
    if cache is None:
        room = mx.broadcast_to(mx.array(0, kv.dtype), (*kv.shape[:3], steps - 1, kv.shape[-1]))
        # One key only: its softmax weight is exactly 1.
        values = kv[1:].reshape(kv.shape[1:])
        repeat = q.shape[1] // kv.shape[2]
        values = values if repeat == 1 else mx.repeat(values, repeat, axis=1)
        return values, mx.concatenate([kv, room], axis=3) if steps > 1 else kv
    cache[:, :, :, k : k + 1] = kv
    return attend(q, cache[:, :, :, : k + 1]), cache


class LmModel(nn.Module):
    """Helium and the depth transformer with their embeddings and heads."""

    def __init__(self, cfg: LmConfig):
        super().__init__()
        dim = cfg.transformer.d_model
        self._config = cfg
        self._compute_dtype: mx.Dtype | None = None
        self._tables: StackedTables | None = None
        self._prepared = False
        self.text_emb = TokenEmbedding(cfg.text_in_vocab_size, dim, demux=cfg.demux_second_stream, norm=cfg.norm_emb)
        self.audio_embs = [TokenEmbedding(cfg.card + 1, dim, norm=cfg.norm_emb) for _ in range(cfg.n_q)]
        self.transformer = Transformer(cfg.transformer)
        self.out_norm = make_norm(cfg.transformer.norm, dim)
        self.text_linear = nn.Linear(dim, cfg.text_out_vocab_size, bias=cfg.bias_proj)
        self.extra_heads = [nn.Linear(dim, cfg.extra_heads_dim, bias=False) for _ in range(cfg.extra_heads_num_heads)]
        self.depformer = DepFormer(cfg)
        self.condition_provider = ConditionProvider(dim, cfg.conditioners) if cfg.conditioners else None

    @property
    def cfg(self) -> LmConfig:
        return self._config

    @property
    def dtype(self) -> mx.Dtype:
        """Type of activations and of the key/value rings: what the loader chose, else that of the text embedding."""
        return self._compute_dtype or self.text_emb.dtype

    def set_compute_dtype(self, dtype: mx.Dtype | None) -> None:
        self._compute_dtype = dtype

    @property
    def n_q(self) -> int:
        return self.cfg.n_q

    @property
    def dep_q(self) -> int:
        return self.cfg.dep_q

    @property
    def num_codebooks(self) -> int:
        return self.cfg.num_channels

    @property
    def audio_offset(self) -> int:
        return 1

    @property
    def delays(self) -> list[int]:
        """Delays of the audio codebooks, in frames (the text delay is `cfg.delays[0]`)."""
        return self.cfg.audio_delays

    def prepare(self) -> None:
        """Rearrange the weights for stepping (see `packed`). Once, when loading and quantising are over."""
        if self._prepared:
            return
        self._prepared = True
        self._tables = StackedTables.of([self.text_emb, *self.audio_embs])
        self.depformer.prepare(self.dtype)
        device.lay_out(self)

    def step_weights(self) -> StepWeights:
        """What a step reads, what `prepare` has stacked included."""
        return StepWeights(self, {"tables": self._tables, "depformer.inputs": self.depformer.stacked_inputs})

    def embed(self, tokens: mx.array) -> mx.array:
        """Trunk input `[B, T, d]` of `tokens [B, K]` or `[B, K, T]`: audio in codebook order, then text (lm.md 2.4)."""
        if tokens.ndim == 2:
            if self._tables is not None:
                return self._tables.total(tokens, self.dtype)
            tokens = tokens[..., None]
        x = None
        for i, table in enumerate(self.audio_embs):
            e = table(tokens[:, 1 + i], self.dtype)
            x = e if x is None else x + e
        text = self.text_emb(tokens[:, 0], self.dtype)
        return text if x is None else x + text

    def trunk(
        self,
        x: mx.array,
        state: dict,
        cross: list | None = None,
        execute: mx.array | None = None,
        cross_mask: mx.array | None = None,
    ) -> tuple[mx.array, dict]:
        """Temporal transformer and final norm: `x [B, T, d]` -> `z [B, T, d]` and the new state."""
        y, state = self.transformer(x, state, cross, execute, cross_mask)
        return self.out_norm(y), state

    def heads(self, z: mx.array) -> list[mx.array]:
        """Probabilities `[B, T, extra_heads_dim]` of each extra head."""
        return [mx.softmax(head(z), axis=-1, precise=True) for head in self.extra_heads]

    def __call__(self, tokens: mx.array) -> mx.array:
        """Text logits `[B, T, text_card_out]` of text `tokens [B, T]` alone, causal from position 0 (Helium)."""
        x = self.text_emb(tokens, self.dtype)
        return self.text_linear(self.out_norm(self.transformer.forward(x)))
