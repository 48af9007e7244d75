"""Running the language model frame by frame, as the live loop does.

Many independent conversations run as one batch, which is what makes the evaluation quick.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .codec import rotate
from .lm import Lm


@dataclass(frozen=True)
class Sampling:
    """Temperatures (0 = greedy) and top-k, by the names of `lm_gen_config`."""

    temp: float = 0.4
    temp_text: float = 0.0
    top_k: int = 50
    top_k_text: int = 10

    def text(self, logits: Tensor) -> Tensor:
        return sample(logits, self.temp_text, self.top_k_text)

    def audio(self, logits: Tensor) -> Tensor:
        return sample(logits, self.temp, self.top_k)


def sample(logits: Tensor, temperature: float, top_k: int) -> Tensor:
    """logits [B, V] -> [B]."""
    if temperature <= 0:
        return logits.argmax(-1)
    probs = F.softmax(logits.float() / temperature, -1)
    values, indices = probs.topk(min(top_k, probs.shape[-1]))
    return indices.gather(1, torch.multinomial(values, 1))[:, 0]


class Stream:
    """Key/value windows and the clock of a batch of conversations."""

    def __init__(self, lm: Lm):
        self.lm, self.position = lm, 0
        self.past: list[tuple[Tensor, Tensor] | None] = [None] * lm.cfg.num_layers

    def step(self, tokens: Tensor) -> Tensor:
        """tokens [B, K] of one column -> hidden [B, D]."""
        cfg = self.lm.cfg
        x = self.lm.embed(tokens[..., None])
        for i, layer in enumerate(self.lm.transformer["layers"]):
            attn = layer.self_attn
            q, k, v = attn.qkv(layer.norm1(x), attn.in_proj_weight)
            q, k = (rotate(y, cfg.max_period, self.position) for y in (q, k))
            if self.past[i] is not None:
                k, v = (torch.cat([old, new], 2)[:, :, -cfg.context :]
                        for old, new in zip(self.past[i], (k, v), strict=True))  # fmt: skip
            self.past[i] = (k, v)
            y = F.scaled_dot_product_attention(q, k, v)
            x = x + attn.out_proj(y.transpose(1, 2).flatten(2))
            x = x + layer.gating(layer.norm2(x))
        self.position += 1
        return self.lm.out_norm(x)[:, 0]

    def frame(self, hidden: Tensor, text: Tensor, sampling: Sampling) -> Tensor:
        """Depth transformer: hidden [B, D], text token [B] -> codes [B, dep_q]."""
        lm, token, codes = self.lm, text, []
        past: list[list] = [[] for _ in lm.depformer["layers"]]
        for k in range(lm.cfg.dep_q):
            x = lm.depth_input(k, hidden, token)[:, None]
            for layer, seen in zip(lm.depformer["layers"], past, strict=True):
                x = layer(x, seen)
            token = sampling.audio(lm.linears[k](x[:, 0]))
            codes.append(token)
        return torch.stack(codes, 1)


@torch.no_grad()
def converse(lm: Lm, user: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """user codes [B, 8, F] -> (text tokens [B, F], own codes [B, dep_q, F]).

    Output frame f depends on the user's frames up to f for codebooks 1.., up to f - 1 for
    the text and codebook 0.
    """
    cfg, (batch, _, frames) = lm.cfg, user.shape
    channels, lag = 1 + cfg.n_q, max(cfg.delays)
    # Undelayed tokens; column f + 1 of `seen` is what the model reads at time f + 1.
    initial = torch.tensor(lm.initial)
    seen = initial.view(1, -1, 1).expand(batch, channels, frames + lag + 1).clone()
    for c in range(1 + cfg.dep_q, channels):
        first = 1 + cfg.delays[c]
        seen[:, c, first : first + frames] = user[:, c - 1 - cfg.dep_q]
    stream = Stream(lm)
    for t in range(frames + lag):
        hidden = stream.step(seen[:, :, t])
        text = sampling.text(lm.text_linear(hidden))
        seen[:, 0, t + 1] = text
        codes = stream.frame(hidden, text, sampling)
        for k in range(cfg.dep_q):
            if t >= cfg.delays[1 + k]:
                seen[:, 1 + k, t + 1] = codes[:, k]
    own = [seen[:, 1 + k, 1 + cfg.delays[1 + k] :][:, :frames] for k in range(cfg.dep_q)]
    return seen[:, 0, 1 : frames + 1], torch.stack(own, 1)
