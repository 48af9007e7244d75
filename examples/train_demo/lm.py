"""The two-level language model in PyTorch, with the tensor names of Kyutai's published files: dialogue, speech-to-text
and text-to-speech, as `LmConfig` says.

Channel 0 is text; the codebooks that the model says come next, then those it is given. At model time t the trunk has seen
everything up to the previous column and predicts the text of column t; the depth transformer then predicts codebook k of
column t - delay[k], one codebook after the other.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec import rotate, window_mask

PAD, END_OF_PAD = 3, 0  # text ids: nothing said here; a word starts at the next column
NOTHING = -1  # a token that is embedded as zero


@dataclass(frozen=True)
class LmConfig:
    """Sizes of a language model; `lm_json` spells them in the published vocabulary."""

    text_card: int
    n_q: int = 16
    dep_q: int = 8
    delays: tuple[int, ...] = (0, *(0, *[1] * 7) * 2)
    card: int = 256
    text_card_out: int | None = None
    dim: int = 256
    num_heads: int = 4
    num_layers: int = 6
    hidden_scale: float = 2.5
    context: int = 125  # frames, the current one included: 10 s
    max_period: float = 10_000.0
    depth_dim: int = 128
    depth_heads: int = 2
    depth_layers: int = 2
    depth_feedforward: int = 192
    # Codebook -> weight set. The first levels differ most; the finest ones share weights.
    depth_schedule: tuple[int, ...] = (0, 1, 1, 2, 2, 2, 2, 2)
    extra_heads: int = 0  # pause heads of speech-to-text, each of `extra_heads_dim` classes
    extra_heads_dim: int = 6
    speaker_dim: int = 0  # above 0: voices through cross-attention, two text streams in one

    @property
    def hidden(self) -> int:
        return gated_hidden(int(self.hidden_scale * self.dim), self.dim)

    @property
    def depth_hidden(self) -> int:
        return gated_hidden(self.depth_feedforward, self.depth_dim)

    def lm_json(self) -> dict:
        """The language-model keys of `config.json` in the published layout."""
        found = dict(
            card=self.card, n_q=self.n_q, dep_q=self.dep_q, delays=list(self.delays),
            dim=self.dim, text_card=self.text_card, existing_text_padding_id=PAD,
            num_heads=self.num_heads, num_layers=self.num_layers,
            hidden_scale=self.hidden_scale, causal=True, layer_scale=None, context=self.context,
            max_period=int(self.max_period), gating="silu", norm="rms_norm_f32",
            positional_embedding="rope",
        )  # fmt: skip
        if self.dep_q:
            found |= dict(
                depformer_dim=self.depth_dim,
                depformer_dim_feedforward=self.depth_feedforward,
                depformer_num_heads=self.depth_heads, depformer_num_layers=self.depth_layers,
                depformer_layer_scale=None, depformer_multi_linear=True, depformer_context=self.dep_q,
                depformer_max_period=int(self.max_period), depformer_gating="silu",
                depformer_pos_emb="none", depformer_weights_per_step=True,
                depformer_weights_per_step_schedule=list(self.depth_schedule),
            )  # fmt: skip
        if self.text_card_out is not None:
            found["text_card_out"] = self.text_card_out
        if self.extra_heads:
            found |= dict(extra_heads_num_heads=self.extra_heads, extra_heads_dim=self.extra_heads_dim)
        if self.speaker_dim:
            found |= dict(
                demux_second_stream=True, cross_attention=True,
                conditioners=dict(
                    speaker_wavs=dict(type="tensor", tensor=dict(dim=self.speaker_dim)),
                    cfg=dict(type="lut", lut=dict(n_bins=1, dim=16, tokenizer="noop", possible_values=["2.0"])),
                ),
                fuser=dict(sum=["cfg"], cross=["speaker_wavs"], prepend=[], cross_attention_pos_emb=True,
                           cross_attention_pos_emb_scale=1.0),
            )  # fmt: skip
        return found


def gated_hidden(feedforward: int, dim: int) -> int:
    """Rows of the gated MLP for a nominal feed-forward size, as published models count them."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


class RmsNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, 1, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * (self.alpha * torch.rsqrt(1e-8 + y.square().mean(-1, keepdim=True)))
        return y.to(x.dtype)


class Gating(nn.Module):
    def __init__(self, dim: int, hidden: int, scale: float):
        super().__init__()
        self.linear_in = nn.Linear(dim, 2 * hidden, bias=False)
        self.linear_out = nn.Linear(hidden, dim, bias=False)
        nn.init.normal_(self.linear_in.weight, std=dim**-0.5)
        nn.init.normal_(self.linear_out.weight, std=scale * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear_in(x).chunk(2, -1)
        return self.linear_out(F.silu(a) * b)


class Attention(nn.Module):
    """Packed projections; `sets` weight sets are stacked along the rows."""

    def __init__(self, dim: int, heads: int, scale: float, sets: int = 1):
        super().__init__()
        self.heads, self.sets = heads, sets
        self.in_proj_weight = nn.Parameter(torch.randn(sets * 3 * dim, dim) * dim**-0.5)
        self.out_proj = nn.Linear(dim, sets * dim, bias=False)
        nn.init.normal_(self.out_proj.weight, std=scale * dim**-0.5)

    def split(self, y: Tensor, parts: int) -> Tensor:
        """[B, T, parts * D] -> [parts, B, H, T, D / H]."""
        return y.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


class TrunkLayer(nn.Module):
    def __init__(self, cfg: LmConfig):
        super().__init__()
        scale = (2 * cfg.num_layers) ** -0.5
        self.max_period = cfg.max_period
        self.norm1, self.norm2 = RmsNorm(cfg.dim), RmsNorm(cfg.dim)
        self.self_attn = Attention(cfg.dim, cfg.num_heads, scale)
        self.gating = Gating(cfg.dim, cfg.hidden, scale)
        if cfg.speaker_dim:
            self.norm_cross = nn.LayerNorm(cfg.dim)
            self.cross_attention = Attention(cfg.dim, cfg.num_heads, scale)

    def forward(self, x: Tensor, mask: Tensor, source: Tensor | None) -> Tensor:
        """x [B, T, D]; mask [T, T] booleans; source [B, S, D] of the cross-attention."""
        attn = self.self_attn
        q, k, v = attn.split(F.linear(self.norm1(x), attn.in_proj_weight), 3)
        q, k = rotate(q, self.max_period), rotate(k, self.max_period)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + attn.out_proj(y.transpose(1, 2).flatten(2))
        if source is not None:
            attn = self.cross_attention
            w_q, w_kv = attn.in_proj_weight.split([x.shape[-1], 2 * x.shape[-1]])
            [q] = attn.split(F.linear(self.norm_cross(x), w_q), 1)
            k, v = attn.split(F.linear(source, w_kv), 2)
            y = F.softmax((q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5, -1).to(v.dtype) @ v
            x = x + attn.out_proj(y.transpose(1, 2).flatten(2))
        return x + self.gating(self.norm2(x))


class TextEmbedding(nn.Module):
    """`rows` vectors; with `two`, token (second + 1) * rows + main stands for two of them (second -1: none)."""

    def __init__(self, rows: int, dim: int, two: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, dim) * 0.3)
        self.two = two
        if two:
            self.out1, self.out2 = (nn.Linear(dim, dim, bias=False) for _ in range(2))
            for out in (self.out1, self.out2):
                nn.init.normal_(out.weight, std=dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.two:
            return F.embedding(tokens, self.weight)
        rows = len(self.weight)
        main, second = tokens % rows, tokens // rows - 1
        y = self.out2(F.embedding(second.clamp(min=0), self.weight)) * (second >= 0)[..., None]
        return self.out1(F.embedding(main, self.weight)) + y


class TensorConditioner(nn.Module):
    """Vectors [B, S, dim] -> [B, S, D]; where the mask [B, S] is false, a learnt vector."""

    def __init__(self, dim: int, output_dim: int):
        super().__init__()
        self.output_proj = nn.Linear(dim, output_dim, bias=False)
        self.learnt_padding = nn.Parameter(torch.randn(1, 1, output_dim) * 0.1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[..., None], self.output_proj(x), self.learnt_padding)


class LutConditioner(nn.Module):
    """The published models' guidance value. This one knows a single value, which adds the same vector to every step."""

    def __init__(self, bins: int, dim: int, output_dim: int):
        super().__init__()
        self.embed = nn.Embedding(bins + 1, dim)
        self.output_proj = nn.Linear(dim, output_dim, bias=False)
        self.learnt_padding = nn.Parameter(torch.zeros(1, 1, output_dim))

    def forward(self) -> Tensor:
        """[D] of value 0."""
        return self.output_proj(self.embed.weight[0])


class Conditions(nn.Module):
    def __init__(self, cfg: LmConfig):
        super().__init__()
        parts = dict(speaker_wavs=TensorConditioner(cfg.speaker_dim, cfg.dim), cfg=LutConditioner(1, 16, cfg.dim))
        self.conditioners = nn.ModuleDict(parts)


def sin_embedding(length: int, dim: int, device) -> Tensor:
    """[length, dim] positions of the cross-attention's source, cosines first."""
    half = dim // 2
    phase = torch.arange(length, device=device)[:, None] / 10_000 ** (torch.arange(half, device=device) / (half - 1))
    return torch.cat([phase.cos(), phase.sin()], -1)


class Lm(nn.Module):
    def __init__(self, cfg: LmConfig):
        super().__init__()
        self.cfg = cfg
        two = cfg.speaker_dim > 0
        self.text_emb = TextEmbedding(cfg.text_card + 1, cfg.dim, two)
        self.emb = nn.ModuleList(nn.Embedding(cfg.card + 1, cfg.dim) for _ in range(cfg.n_q))
        layers = nn.ModuleList(TrunkLayer(cfg) for _ in range(cfg.num_layers))
        self.transformer = nn.ModuleDict({"layers": layers})
        self.out_norm = RmsNorm(cfg.dim)
        self.text_linear = nn.Linear(cfg.dim, cfg.text_card_out or cfg.text_card, bias=False)
        if cfg.extra_heads:
            heads = (nn.Linear(cfg.dim, cfg.extra_heads_dim, bias=False) for _ in range(cfg.extra_heads))
            self.extra_heads = nn.ModuleList(heads)
        if two:
            self.condition_provider = Conditions(cfg)
        if cfg.dep_q:
            sets, dd = max(cfg.depth_schedule) + 1, cfg.depth_dim
            self.depformer_in = nn.ModuleList(nn.Linear(cfg.dim, dd, bias=False) for _ in range(sets))
            self.depformer_text_emb = TextEmbedding(cfg.text_card + 1, dd, two)
            self.depformer_emb = nn.ModuleList(nn.Embedding(cfg.card + 1, dd) for _ in range(cfg.dep_q - 1))
            layers = nn.ModuleList(DepthLayer(cfg) for _ in range(cfg.depth_layers))
            self.depformer = nn.ModuleDict({"layers": layers})
            self.linears = nn.ModuleList(nn.Linear(dd, cfg.card, bias=False) for _ in range(cfg.dep_q))
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
        for head in [self.text_linear, *(self.linears if cfg.dep_q else [])]:
            nn.init.normal_(head.weight, std=0.5 * head.in_features**-0.5)

    def compiled(self) -> "Lm":
        """Itself, its trunk compiled at the first call: small kernels joined to larger ones.

        Not the depth transformer: on a GPU PyTorch 2.11 gives the gradient of its norms another shape than they have.
        """
        self.trunk = torch.compile(self.trunk)
        return self

    def delayed(self, codes: Tensor) -> Tensor:
        """codes [B, K, T] -> [B, K, T + 1]: an initial column, then each channel shifted right."""
        batch, channels, steps = codes.shape
        cfg = self.cfg
        out = torch.full((batch, channels, steps + 1), cfg.card, dtype=codes.dtype, device=codes.device)
        out[:, 0].fill_(cfg.text_card)
        for c, delay in enumerate(cfg.delays):
            out[:, c, 1 + delay :] = codes[:, c, : steps - delay]
        return out

    def trunk(self, tokens: Tensor, source: Tensor | None = None) -> Tensor:
        """tokens [B, K, T], cross-attention source [B, S, D] -> normalised hidden states [B, T, D]."""
        x = self.text_emb(tokens[:, 0]) + self._summed(self.emb, tokens[:, 1:].transpose(1, 2))
        if source is not None:
            x = x + self.condition_provider.conditioners["cfg"]()
        mask = window_mask(x.shape[1], self.cfg.context, x.device)
        for layer in self.transformer["layers"]:
            x = layer(x, mask, source)
        return self.out_norm(x)

    @staticmethod
    def _summed(tables: nn.ModuleList, tokens: Tensor) -> Tensor:
        """tokens [B, T, K], one channel for each of K tables -> the sum of their rows [B, T, D]; -1 adds nothing."""
        rows, count = len(tables[0].weight), len(tables)
        weight = torch.cat([table.weight for table in tables])
        index = tokens.clamp(min=0) + rows * torch.arange(count, device=tokens.device)
        counts = (tokens >= 0).to(weight.dtype).flatten(0, 1)
        y = F.embedding_bag(index.flatten(0, 1), weight, mode="sum", per_sample_weights=counts)
        return y.unflatten(0, tokens.shape[:2])

    def voices(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Speakers [B, S, speaker_dim], true where there is one [B, S] -> source of the cross-attention [B, S, D]."""
        source = self.condition_provider.conditioners["speaker_wavs"](vectors, mask)
        return source + sin_embedding(source.shape[1], self.cfg.dim, source.device)

    def depth_logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced: hidden [N, D], tokens [N, dep_q] (text, codebooks 0..dep_q-2)
        -> logits [N, dep_q, card]."""
        w_in = torch.stack([self.depformer_in[s].weight for s in self.cfg.depth_schedule])  # [T, dd, D]
        x = torch.einsum("nd,ted->tne", hidden, w_in.to(hidden.dtype)).float()
        tables = torch.stack([table.weight for table in self.depformer_emb])
        known = tokens[:, 1:]
        at = known.clamp(min=0) + tables.shape[1] * torch.arange(known.shape[1], device=known.device)
        audio = F.embedding(at, tables.flatten(0, 1)) * (known >= 0)[..., None]
        x = x + torch.cat([self.depformer_text_emb(tokens[:, 0])[None], audio.transpose(0, 1)]).to(x.dtype)
        for layer in self.depformer["layers"]:
            x = layer(x)
        heads = torch.stack([head.weight for head in self.linears])
        return torch.bmm(x, heads.transpose(1, 2).to(x.dtype)).transpose(0, 1)


class DepthLayer(nn.Module):
    """Attention and MLP have one weight set per entry of the schedule; the norms are shared."""

    def __init__(self, cfg: LmConfig):
        super().__init__()
        dim, sets = cfg.depth_dim, max(cfg.depth_schedule) + 1
        scale = (2 * cfg.depth_layers) ** -0.5
        self.schedule = list(cfg.depth_schedule)
        self.norm1, self.norm2 = RmsNorm(dim), RmsNorm(dim)
        self.self_attn = Attention(dim, cfg.depth_heads, scale, sets)
        self.gating = nn.ModuleList(Gating(dim, cfg.depth_hidden, scale) for _ in range(sets))

    def forward(self, x: Tensor) -> Tensor:
        """x [T, N, D]: all codebooks of N frames."""
        attn, steps = self.self_attn, len(x)

        def weights(sets) -> Tensor:
            """Matrices [out, in] of the sets -> the transposed one of each codebook, [T, in, out]."""
            return torch.stack([sets[s] for s in self.schedule]).transpose(1, 2).to(x.dtype)

        w_in = weights(attn.in_proj_weight.chunk(attn.sets))
        w_out = weights(attn.out_proj.weight.chunk(attn.sets))
        q, k, v = attn.split(torch.bmm(self.norm1(x), w_in).transpose(0, 1), 3)  # [N, H, T, D / H]
        causal = window_mask(steps, steps, x.device)
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
        y = F.softmax(scores.masked_fill(~causal, float("-inf")), -1).to(v.dtype) @ v
        x = x + torch.bmm(y.permute(2, 0, 1, 3).flatten(2), w_out)
        a, b = torch.bmm(self.norm2(x), weights([g.linear_in.weight for g in self.gating])).chunk(2, -1)
        return x + torch.bmm(F.silu(a) * b, weights([g.linear_out.weight for g in self.gating]))


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
