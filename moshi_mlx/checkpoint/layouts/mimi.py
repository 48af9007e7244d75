"""Where every parameter of `models.mimi_model.MimiModel` is found: Kyutai and transformers files (mimi.md section 8)."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from ...config.parts import MimiConfig
from .expr import Centroids, Concat, Expr, Pairs, Reshape, Stored, Transpose, WeightNorm
from .lm import any_of

_SEANET = re.compile(r"(encoder|decoder)\.model\.(\d+)\.(?:(conv1|conv2|shortcut)\.)?(weight|bias)$")
_CODEBOOK = re.compile(r"quantizer\.(rvq_first|rvq_rest)\.codebooks\.(\d+)$")
_BLOCK_INDEX = {"conv1": "block.1", "conv2": "block.3", "shortcut": "shortcut"}


def detect(names: Collection[str]) -> str:
    return (
        "transformers" if any(".self_attn.q_proj." in n or n.startswith("encoder.layers.") for n in names) else "kyutai"
    )


def unused_ok(name: str) -> bool:
    """Tensors a loader passes over: training flags of the codebooks."""
    return name.rsplit(".", 1)[-1] in ("_initialized", "initialized", "inited")


def sources(
    parameters: Collection[str], cfg: MimiConfig, names: Collection[str], layout: str, transposed: Collection[str]
) -> dict[str, Expr]:
    """Parameter name -> expression. `transposed` names the parameters of transposed convolutions."""
    find = (_Kyutai if layout == "kyutai" else _Transformers)(cfg, set(names).__contains__, transposed)
    return {p: find(p) for p in parameters}


class _Kyutai:
    def __init__(self, cfg: MimiConfig, has: Callable[[str], bool], transposed: Collection[str]):
        self.cfg, self.has, self.transposed = cfg, has, set(transposed)

    def __call__(self, parameter: str) -> Expr:
        if match := _SEANET.match(parameter):
            side, index, part, leaf = match.groups()
            inner = f".{_BLOCK_INDEX[part]}" if part else ""
            is_transposed = parameter in self.transposed
            prefix = self.seanet(f"{side}.model.{index}{inner}", is_transposed)
            return self.kernel(prefix, is_transposed) if leaf == "weight" else Stored(f"{prefix}.bias")
        if match := _CODEBOOK.match(parameter):
            return self.codebook(match[1], int(match[2]))
        if parameter == "downsample.weight":
            return self.kernel(self.resample("downsample"), False)
        if parameter == "upsample.weight":
            # [channels, 1, k] -> [k, channels]
            weight = self.stored_kernel(self.resample("upsample"))
            return Reshape(Transpose(weight, (2, 1, 0)), (-1, self.cfg.seanet.dimension))
        if parameter.startswith("quantizer."):
            return self.quantizer_projection(parameter)
        return self.transformer(parameter)

    def kernel(self, prefix: str, is_transposed: bool) -> Expr:
        """[out, in, k] -> [k, in, out]; transposed [in, out, k] -> [in, k, out]."""
        return Transpose(self.stored_kernel(prefix), (0, 2, 1) if is_transposed else (2, 1, 0))

    def stored_kernel(self, prefix: str) -> Expr:
        if self.has(f"{prefix}.weight_v"):
            return WeightNorm(Stored(f"{prefix}.weight_g"), Stored(f"{prefix}.weight_v"))
        return Stored(f"{prefix}.weight")

    def seanet(self, prefix: str, is_transposed: bool) -> str:
        return f"{prefix}.convtr.convtr" if is_transposed else f"{prefix}.conv.conv"

    def resample(self, name: str) -> str:
        return "downsample.conv.conv.conv" if name == "downsample" else "upsample.convtr.convtr.convtr"

    def codebook(self, quantizer: str, level: int) -> Expr:
        prefix = f"quantizer.{quantizer}.vq.layers.{level}._codebook"
        total = any_of(self.has, f"{prefix}.embed_sum", f"{prefix}.embed_avg", f"{prefix}.embedding_sum")
        usage = any_of(self.has, f"{prefix}.cluster_size", f"{prefix}.cluster_usage")
        return Centroids(total, usage)

    def quantizer_projection(self, parameter: str) -> Expr:
        return self.squeeze(Stored(parameter), parameter)

    def squeeze(self, weight: Expr, parameter: str) -> Expr:
        """A 1x1 convolution [out, in, 1] as a matrix."""
        inner = self.cfg.codebook_dim if parameter.endswith("output_proj.weight") else self.cfg.seanet.dimension
        return Reshape(weight, (-1, inner))

    def transformer(self, parameter: str) -> Expr:
        if self.has(parameter) or self.has(f"{parameter.removesuffix('weight')}scales"):
            # Layers of a quantised codec are stored under their own names.
            return Stored(parameter)
        prefix, _, rest = parameter.partition(".self_attn.")
        if rest == "in_proj.weight":
            base = f"{prefix}.self_attn."
            return any_of(self.has, f"{base}in_projs.0.weight", f"{base}in_proj.weight", f"{base}in_proj_weight")
        if rest == "out_proj.weight":
            return any_of(self.has, f"{prefix}.self_attn.out_projs.0.weight", parameter)
        name = parameter.replace(".gating.linear1.", ".linear1.").replace(".gating.linear2.", ".linear2.")
        prefix, _, leaf = name.rpartition(".")
        if leaf == "weight" and self.has(f"{prefix}.alpha"):
            return Reshape(Stored(f"{prefix}.alpha"), (-1,))
        return Stored(name)


class _Transformers(_Kyutai):
    """`MimiModel` of transformers: rotary halves instead of neighbours, separate q, k and v (mimi.md 8.2)."""

    _LEAVES = {
        "self_attn.out_proj": "self_attn.o_proj",
        "norm1": "input_layernorm",
        "norm2": "post_attention_layernorm",
        "gating.linear1": "mlp.fc1",
        "gating.linear2": "mlp.fc2",
        "layer_scale_1": "self_attn_layer_scale",
        "layer_scale_2": "mlp_layer_scale",
    }
    _QUANTIZERS = {"rvq_first": "semantic_residual_vector_quantizer", "rvq_rest": "acoustic_residual_vector_quantizer"}

    def seanet(self, prefix: str, is_transposed: bool) -> str:
        return prefix.replace(".model.", ".layers.") + ".conv"

    def resample(self, name: str) -> str:
        return f"{name}.conv"

    def codebook(self, quantizer: str, level: int) -> Expr:
        prefix = f"quantizer.{self._QUANTIZERS[quantizer]}.layers.{level}.codebook"
        return Centroids(Stored(f"{prefix}.embed_sum"), Stored(f"{prefix}.cluster_usage"))

    def quantizer_projection(self, parameter: str) -> Expr:
        _, quantizer, leaf = parameter.split(".", 2)
        return self.squeeze(Stored(f"quantizer.{self._QUANTIZERS[quantizer]}.{leaf}"), parameter)

    def transformer(self, parameter: str) -> Expr:
        match = re.match(r"(\w+_transformer)\.transformer\.layers\.(\d+)\.(.*)", parameter)
        assert match is not None, parameter
        stack, index, rest = match.groups()
        prefix = f"{stack}.layers.{index}"
        if rest == "self_attn.in_proj.weight":
            cfg = self.cfg.transformer
            q, k, v = (Stored(f"{prefix}.self_attn.{x}_proj.weight") for x in "qkv")
            return Concat((Pairs(q, cfg.num_heads, False), Pairs(k, cfg.kv_heads, False), v))
        name, _, leaf = rest.rpartition(".")
        return Stored(f"{prefix}.{self._LEAVES[name]}.{leaf}")
