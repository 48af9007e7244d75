"""The two-level language model in PyTorch, with the tensor names of Kyutai's published file.

Channel 0 is text, channels 1..8 Moshi's codebooks, 9..16 the user's. At model time t the trunk
has seen everything up to the previous column and predicts the text of column t; the depth
transformer then predicts codebook k of column t - delay[k], one codebook after the other.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .codec import rotate, window_mask

PAD, END_OF_PAD = 3, 0  # text ids: nothing said here; a word starts at the next column


@dataclass(frozen=True)
class LmConfig:
    """Sizes of the language model; `lm_json` spells them in the published vocabulary."""

    text_card: int = 256
    card: int = 256
    n_q: int = 16
    dep_q: int = 8
    delays: tuple[int, ...] = (0, *(0, *[1] * 7) * 2)
    dim: int = 192
    num_heads: int = 6
    num_layers: int = 6
    hidden_scale: float = 2.5
    context: int = 125  # frames, the current one included: 10 s
    max_period: float = 10_000.0
    depth_dim: int = 128
    depth_heads: int = 4
    depth_layers: int = 2
    depth_feedforward: int = 96
    # Codebook -> weight set. The first levels differ most; the finest ones share weights.
    depth_schedule: tuple[int, ...] = (0, 1, 1, 2, 2, 2, 2, 2)

    @property
    def hidden(self) -> int:
        return gated_hidden(int(self.hidden_scale * self.dim), self.dim)

    @property
    def depth_hidden(self) -> int:
        return gated_hidden(self.depth_feedforward, self.depth_dim)

    def lm_json(self) -> dict:
        """The language-model keys of `config.json` in the published layout."""
        return dict(
            card=self.card, n_q=self.n_q, dep_q=self.dep_q, delays=list(self.delays),
            dim=self.dim, text_card=self.text_card, existing_text_padding_id=PAD,
            num_heads=self.num_heads, num_layers=self.num_layers,
            hidden_scale=self.hidden_scale, causal=True, layer_scale=None, context=self.context,
            max_period=int(self.max_period), gating="silu", norm="rms_norm_f32",
            positional_embedding="rope", depformer_dim=self.depth_dim,
            depformer_dim_feedforward=self.depth_feedforward,
            depformer_num_heads=self.depth_heads, depformer_num_layers=self.depth_layers,
            depformer_layer_scale=None, depformer_multi_linear=True, depformer_context=self.dep_q,
            depformer_max_period=int(self.max_period), depformer_gating="silu",
            depformer_pos_emb="none", depformer_weights_per_step=True,
            depformer_weights_per_step_schedule=list(self.depth_schedule),
        )  # fmt: skip


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention of q [B, H, T, D] to k, v [B, H, S, D] where mask [T, S] is true.

    Spelled out: on a CPU the framework's fused kernel takes 1.4 times as long on these sizes, and
    2.7 times on the few positions of the depth transformer.
    """
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return F.softmax(scores.float().masked_fill(~mask, float("-inf")), -1).to(v.dtype) @ v


class Attention(nn.Module):
    """Packed projections; `sets` weight sets are stacked along the rows."""

    def __init__(self, dim: int, heads: int, scale: float, sets: int = 1):
        super().__init__()
        self.heads, self.sets = heads, sets
        self.in_proj_weight = nn.Parameter(torch.randn(sets * 3 * dim, dim) * dim**-0.5)
        self.out_proj = nn.Linear(dim, sets * dim, bias=False)
        nn.init.normal_(self.out_proj.weight, std=scale * dim**-0.5)

    def qkv(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] -> three of [B, H, T, D / H]."""
        y = F.linear(x, weight).unflatten(-1, (3, self.heads, -1))
        return tuple(y.permute(2, 0, 3, 1, 4))


class TrunkLayer(nn.Module):
    def __init__(self, cfg: LmConfig):
        super().__init__()
        scale = (2 * cfg.num_layers) ** -0.5
        self.max_period = cfg.max_period
        self.norm1, self.norm2 = RmsNorm(cfg.dim), RmsNorm(cfg.dim)
        self.self_attn = Attention(cfg.dim, cfg.num_heads, scale)
        self.gating = Gating(cfg.dim, cfg.hidden, scale)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, T, D]; mask [T, T] booleans."""
        attn = self.self_attn
        q, k, v = attn.qkv(self.norm1(x), attn.in_proj_weight)
        q, k = rotate(q, self.max_period), rotate(k, self.max_period)
        x = x + attn.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.gating(self.norm2(x))


class DepthLayer(nn.Module):
    """Attention and MLP have one weight set per entry of the schedule; the norms are shared."""

    def __init__(self, cfg: LmConfig):
        super().__init__()
        dim, sets = cfg.depth_dim, max(cfg.depth_schedule) + 1
        scale = (2 * cfg.depth_layers) ** -0.5
        self.schedule = cfg.depth_schedule
        self.norm1, self.norm2 = RmsNorm(dim), RmsNorm(dim)
        self.self_attn = Attention(dim, cfg.depth_heads, scale, sets)
        self.gating = nn.ModuleList(Gating(dim, cfg.depth_hidden, scale) for _ in range(sets))

    def forward(self, x: Tensor, past: list | None = None) -> Tensor:
        """x [N, T, D]: T codebooks after those whose keys and values are in `past`.

        `past` is extended in place; without it, x starts at codebook 0.
        """
        attn, seen = self.self_attn, len(past) if past else 0
        sets = self.schedule[seen : seen + x.shape[1]]
        w_in, w_out = attn.in_proj_weight.chunk(attn.sets), attn.out_proj.weight.chunk(attn.sets)
        y = self.norm1(x)
        parts = [attn.qkv(y[:, i : i + 1], w_in[s]) for i, s in enumerate(sets)]
        q = torch.cat([p[0] for p in parts], 2)
        if past is not None:
            past.extend(parts)
            parts = past
        k, v = (torch.cat([p[i] for p in parts], 2) for i in (1, 2))
        causal = window_mask(k.shape[2], k.shape[2], x.device)[seen:]
        y = attend(q, k, v, causal).transpose(1, 2).flatten(2)
        x = x + torch.cat([F.linear(y[:, i : i + 1], w_out[s]) for i, s in enumerate(sets)], 1)
        y = self.norm2(x)
        return x + torch.cat([self.gating[s](y[:, i : i + 1]) for i, s in enumerate(sets)], 1)


class Lm(nn.Module):
    def __init__(self, cfg: LmConfig):
        super().__init__()
        self.cfg = cfg
        sets = max(cfg.depth_schedule) + 1
        self.text_emb = nn.Embedding(cfg.text_card + 1, cfg.dim)
        self.emb = nn.ModuleList(nn.Embedding(cfg.card + 1, cfg.dim) for _ in range(cfg.n_q))
        layers = nn.ModuleList(TrunkLayer(cfg) for _ in range(cfg.num_layers))
        self.transformer = nn.ModuleDict({"layers": layers})
        self.out_norm = RmsNorm(cfg.dim)
        self.text_linear = nn.Linear(cfg.dim, cfg.text_card, bias=False)
        dd = cfg.depth_dim
        self.depformer_in = nn.ModuleList(nn.Linear(cfg.dim, dd, bias=False) for _ in range(sets))
        self.depformer_text_emb = nn.Embedding(cfg.text_card + 1, dd)
        self.depformer_emb = nn.ModuleList(nn.Embedding(cfg.card + 1, dd) for _ in range(cfg.dep_q - 1))
        layers = nn.ModuleList(DepthLayer(cfg) for _ in range(cfg.depth_layers))
        self.depformer = nn.ModuleDict({"layers": layers})
        self.linears = nn.ModuleList(nn.Linear(dd, cfg.card, bias=False) for _ in range(cfg.dep_q))
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
        for head in [self.text_linear, *self.linears]:
            nn.init.normal_(head.weight, std=0.5 * head.in_features**-0.5)

    @property
    def initial(self) -> list[int]:
        """The initial token of each channel."""
        return [self.cfg.text_card] + [self.cfg.card] * self.cfg.n_q

    def delayed(self, codes: Tensor) -> Tensor:
        """codes [B, K, T] -> [B, K, T + 1]: an initial column, then each channel shifted right."""
        batch, channels, steps = codes.shape
        start = torch.tensor(self.initial).view(1, -1, 1)
        out = start.expand(batch, channels, steps + 1).clone()
        for c, delay in enumerate(self.cfg.delays):
            out[:, c, 1 + delay :] = codes[:, c, : steps - delay]
        return out

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens [B, K, T] -> [B, T, D]."""
        x = self.emb[0](tokens[:, 1])
        for i in range(1, self.cfg.n_q):
            x = x + self.emb[i](tokens[:, 1 + i])
        return x + self.text_emb(tokens[:, 0])

    def trunk(self, tokens: Tensor) -> Tensor:
        """tokens [B, K, T] -> normalised hidden states [B, T, D]."""
        x = self.embed(tokens)
        mask = window_mask(x.shape[1], self.cfg.context, x.device)
        for layer in self.transformer["layers"]:
            x = layer(x, mask)
        return self.out_norm(x)

    def depth_input(self, k: int, hidden: Tensor, token: Tensor) -> Tensor:
        """hidden [N, D], previous token [N] -> input of depth position k, [N, depth dim]."""
        table = self.depformer_emb[k - 1] if k else self.depformer_text_emb
        return self.depformer_in[self.cfg.depth_schedule[k]](hidden) + table(token)

    def depth_logits(self, hidden: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced: hidden [N, D], tokens [N, dep_q] (text, codebooks 0..dep_q-2)
        -> logits [N, dep_q, card]."""
        x = torch.stack([self.depth_input(k, hidden, tokens[:, k]) for k in range(self.cfg.dep_q)], 1)
        for layer in self.depformer["layers"]:
            x = layer(x)
        return torch.stack([head(x[:, k]) for k, head in enumerate(self.linears)], 1)


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
