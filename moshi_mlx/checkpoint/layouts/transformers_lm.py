"""Where every parameter of `models.lm_model.LmModel` is found in a file of transformers (family.md 1.1 and 4, lm.md 9.2).

Four architectures hold our model or its trunk: `moshi` (MoshiForConditionalGeneration), `kyutai_speech_to_text`, and as text
models alone `helium` and `llama`. All but Helium rotate halves of a head, Kyutai's own files neighbours: query and key rows
change places where the two differ.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from ...config.parts import LmConfig
from .expr import Concat, Expr, Index, Pairs, Slice, Stored

_SLICE = re.compile(r"depformer\.slices\.(\d+)\.(.*)")
_LAYER = re.compile(r"transformer\.layers\.(\d+)\.(.*)")


@dataclass(frozen=True)
class Family:
    """How one architecture names the trunk; `infix` stands between a projection and its weight."""

    trunk: str
    head: str
    infix: str = ""
    fused_gate: bool = False
    rotates_halves: bool = True


FAMILIES = {
    "moshi": Family("decoder.model", "decoder.lm_head", ".linear", fused_gate=True),
    "kyutai_speech_to_text": Family("model", "lm_head", ".linear", fused_gate=True),
    "helium": Family("model", "lm_head", rotates_halves=False),
    "llama": Family("model", "lm_head"),
}
NORMS = {"norm1.weight": "input_layernorm.weight", "norm2.weight": "post_attention_layernorm.weight"}


def detect(names: Collection[str]) -> str | None:
    """Architecture of a file by its tensor names, `text` for Helium and Llama, which are alike; None for other layouts."""
    if "depth_decoder.lm_heads.weight" in names:
        return "moshi"
    if "model.embed_tokens.embed_tokens.weight" in names:
        return "kyutai_speech_to_text"
    return "text" if "model.embed_tokens.weight" in names else None


def unused_ok(name: str) -> bool:
    """Buffers that older versions saved and every version computes."""
    return name.endswith(".rotary_emb.inv_freq")


def sources(parameters: Collection[str], cfg: LmConfig, names: Collection[str], architecture: str) -> dict[str, Expr]:
    """Parameter name -> expression over the file's tensors."""
    find = _Reader(cfg, architecture, set(names))
    return {p: find(p) for p in parameters}


def permutes(cfg: LmConfig, family: Family) -> bool:
    """Whether rotary pairs lie differently in the model and in the file."""
    ours_in_halves = cfg.transformer.positional_embedding == "rope_concat"
    return ours_in_halves != family.rotates_halves


class _Reader:
    def __init__(self, cfg: LmConfig, architecture: str, names: Collection[str]):
        self.cfg, self.architecture, self.names = cfg, architecture, names
        self.family = FAMILIES[architecture]

    def __call__(self, parameter: str) -> Expr:
        if match := _SLICE.match(parameter):
            return self.depth(int(match[1]), match[2])
        if match := _LAYER.match(parameter):
            return self.layer(f"{self.family.trunk}.layers.{match[1]}", match[2])
        if parameter == "out_norm.weight":
            return Stored(f"{self.family.trunk}.norm.weight")
        if parameter == "text_linear.weight":
            return self.head()
        if parameter == "text_emb.weight":
            return self.table(0)
        if parameter.startswith("audio_embs."):
            return self.table(1 + int(parameter.split(".")[1]))
        return Stored(parameter)

    def table(self, channel: int) -> Expr:
        """Embedding of a channel, text first. The speech-to-text files hold all of them in one."""
        text_rows, audio_rows = self.cfg.text_in_vocab_size, self.cfg.card + 1
        if self.architecture == "kyutai_speech_to_text":
            start = text_rows + audio_rows * (channel - 1) if channel else 0
            whole = Stored(f"{self.family.trunk}.embed_tokens.embed_tokens.weight")
            return Slice(whole, start, start + (audio_rows if channel else text_rows))
        if channel:
            return Stored(f"embed_tokens.{channel - 1}.weight")
        return Stored(f"{self.family.trunk}.embed_tokens.weight")

    def head(self) -> Expr:
        name = f"{self.family.head}.weight"
        if name not in self.names and self.architecture in ("helium", "llama"):
            # Tied to the table.
            return self.table(0)
        if self.architecture == "kyutai_speech_to_text":
            # One row more than the model was trained with, of zeros.
            return Slice(Stored(name), 0, self.cfg.text_out_vocab_size)
        return Stored(name)

    def layer(self, prefix: str, rest: str) -> Expr:
        family, cfg = self.family, self.cfg.transformer
        attention = f"{prefix}.self_attn"
        if rest == "self_attn.in_proj.weight":
            q, k, v = (Stored(f"{attention}.{x}_proj{family.infix}.weight") for x in "qkv")
            if not permutes(self.cfg, family):
                return Concat((q, k, v))
            to_halves = not family.rotates_halves
            return Concat((Pairs(q, cfg.num_heads, to_halves), Pairs(k, cfg.kv_heads, to_halves), v))
        if rest == "self_attn.out_proj.weight":
            return Stored(f"{attention}.o_proj{family.infix}.weight")
        if rest in NORMS:
            return Stored(f"{prefix}.{NORMS[rest]}")
        if rest == "gating.linear_in.weight":
            if family.fused_gate:
                return Stored(f"{prefix}.mlp.fc1.weight")
            return Concat((Stored(f"{prefix}.mlp.gate_proj.weight"), Stored(f"{prefix}.mlp.up_proj.weight")))
        if rest == "gating.linear_out.weight":
            return Stored(f"{prefix}.mlp.{'fc2' if family.fused_gate else 'down_proj'}.weight")
        return Stored(f"{prefix}.{rest}")

    def depth(self, k: int, rest: str) -> Expr:
        """A parameter of one slice: entry `k` of a tensor stacked over codebooks `[dep_q, out, in]`."""
        if match := _LAYER.match(rest):
            return self.depth_layer(k, f"depth_decoder.layers.{match[1]}", match[2])
        if rest == "linear_in.weight":
            return self.of_codebook("depth_decoder.input_projections.weight", k)
        if rest == "linear_out.weight":
            return self.of_codebook("depth_decoder.lm_heads.weight", k)
        if rest == "emb.weight":
            table = "text_embed_tokens" if k == 0 else f"embed_tokens.{k - 1}"
            return Stored(f"depth_decoder.{table}.weight")
        return Stored(f"depth_decoder.{k}.{rest}")

    def depth_layer(self, k: int, prefix: str, rest: str) -> Expr:
        if rest == "self_attn.in_proj.weight":
            names = (f"{prefix}.self_attn.{x}_proj.linear.weight" for x in "qkv")
            return Concat(tuple(self.of_codebook(name, k) for name in names))
        if rest == "self_attn.out_proj.weight":
            return self.of_codebook(f"{prefix}.self_attn.o_proj.linear.weight", k)
        if rest == "gating.linear_in.weight":
            return self.of_codebook(f"{prefix}.mlp.fc1.weight", k)
        if rest == "gating.linear_out.weight":
            return self.of_codebook(f"{prefix}.mlp.fc2.weight", k)
        return Stored(f"{prefix}.{NORMS.get(rest, rest)}")

    def of_codebook(self, name: str, k: int) -> Expr:
        return Index(Stored(name), k, self.cfg.dep_q)
