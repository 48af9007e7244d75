"""Configurations of transformers made into Kyutai's (family.md 1.1 and 4, mimi.md 8.2), and which of them a model can have.

Keys that a file leaves out have the defaults of the classes in transformers; what our model cannot compute is refused by name.
"""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError, quoted
from . import presets
from .parts import gated_hidden
from .reader import MOST_BLOCKS, NUMBER, REQUIRED, Reader

# Architectures of speech models with what their codec's tensors begin with, and those of text models.
CODEC_PREFIXES = {"moshi": "audio_encoder.", "kyutai_speech_to_text": "codec_model."}
TEXT_ARCHITECTURES = ("helium", "llama")
_ACTIVATIONS = ("silu", "gelu", "relu")
_NORMS = {1e-8: "rms_norm_f32", 1e-5: "rms_norm"}
# hidden size, layers, heads, gated feed-forward (both halves), window, rotary base, vocabulary
_TRUNK_DEFAULTS: dict[str, dict[str, Any]] = {
    "moshi": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "ffn_dim": 22528, "sliding_window": 3000,
              "rope_theta": 10000.0, "vocab_size": 32000, "rms_norm_eps": 1e-8},
    "kyutai_speech_to_text": {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "ffn_dim": 11264,
                              "sliding_window": 375, "rope_theta": 100000.0, "vocab_size": 4001, "rms_norm_eps": 1e-8},
    "helium": {"hidden_size": 2560, "num_hidden_layers": 24, "num_attention_heads": 20, "intermediate_size": 7040,
               "max_position_embeddings": 4096, "rope_theta": 100000.0, "vocab_size": 48000, "rms_norm_eps": 1e-8},
    "llama": {},
    "moshi_depth": {"hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16, "ffn_dim": 5632, "rms_norm_eps": 1e-8},
}  # fmt: skip


def lm_config(data: dict) -> dict[str, Any]:
    """Kyutai keys of a language model of transformers, whose `model_type` is a key of `transformers_lm.FAMILIES`."""
    kind = data["model_type"]
    reader = _DefaultReader(data, f"config ({kind})", _TRUNK_DEFAULTS[kind])
    if kind == "moshi":
        return _moshi(reader)
    return _speech_to_text(reader) if kind == "kyutai_speech_to_text" else _text(reader, kind)


class _DefaultReader(Reader):
    """Takes a key or the default of its class."""

    def __init__(self, data: dict, where: str, defaults: dict[str, Any]):
        super().__init__({k: v for k, v in data.items() if v is not None}, where)
        self.defaults = defaults

    def number(self, key: str, kinds: Any = int, default: Any = REQUIRED, low: float | None = 1) -> Any:
        return self.take(key, kinds, self.defaults.get(key, default), low=low)


def _trunk(reader: _DefaultReader, hidden: int) -> dict[str, Any]:
    """Keys that every architecture shares; `hidden` is the width of the gated feed-forward."""
    dim, heads = reader.number("hidden_size"), reader.number("num_attention_heads")
    _require(reader, "head_dim", dim // heads)
    _require(reader, "attention_bias", False)
    _require(reader, "mlp_bias", False)
    kv_heads = reader.number("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise ConfigError(
            f"{reader.where}: 'num_attention_heads' ({heads}) should be a multiple of 'num_key_value_heads' ({kv_heads})."
        )
    feedforward = feedforward_of(hidden, dim)
    return {
        "dim": dim,
        "num_heads": heads,
        "num_layers": reader.number("num_hidden_layers"),
        "hidden_scale": _ratio(feedforward, dim),
        "causal": True,
        "layer_scale": None,
        "gating": reader.take("hidden_act", str, "silu", one_of=_ACTIVATIONS),
        "norm": _norm(reader),
        "positional_embedding": "rope",
        "max_period": _rotary_base(reader),
        "kv_repeat": heads // kv_heads,
    }


def _moshi(reader: _DefaultReader) -> dict[str, Any]:
    codebooks = reader.number("num_codebooks", default=8)
    codec = reader.take("audio_encoder_config", dict, {})
    depth = _DefaultReader(
        reader.take("depth_decoder_config", dict, {}),
        f"{reader.where}: 'depth_decoder_config'",
        _TRUNK_DEFAULTS["moshi_depth"],
    )
    dim, heads = depth.number("hidden_size"), depth.number("num_attention_heads")
    _require(depth, "head_dim", dim // heads)
    depth_trunk = _norm(depth), depth.take("hidden_act", str, "silu", one_of=_ACTIVATIONS)
    trunk = _trunk(reader, _half(reader, "ffn_dim"))
    if depth_trunk[0] != trunk["norm"]:
        raise ConfigError(f"{depth.where}: 'rms_norm_eps' should be that of the main model.")
    return {
        **trunk,
        "context": reader.number("sliding_window"),
        "n_q": 2 * codebooks,
        "dep_q": codebooks,
        "card": reader.number("audio_vocab_size", default=codec.get("codebook_size", 2048)),
        "text_card": reader.number("vocab_size"),
        "existing_text_padding_id": 3,
        # The pattern its generation builds: the first codebook of each voice at once, the others a frame later.
        "delays": [0, *([0] + [1] * (codebooks - 1)) * 2],
        "depformer_dim": dim,
        "depformer_num_heads": heads,
        "depformer_num_layers": depth.number("num_hidden_layers"),
        "depformer_dim_feedforward": feedforward_of(_half(depth, "ffn_dim"), dim),
        "depformer_gating": depth_trunk[1],
        "depformer_kv_repeat": heads // depth.number("num_key_value_heads", default=heads),
        "depformer_layer_scale": None,
        "depformer_multi_linear": True,
        "depformer_pos_emb": "none",
        "depformer_weights_per_step": True,
        "model_type": "moshi",
    }


def _speech_to_text(reader: _DefaultReader) -> dict[str, Any]:
    vocabulary, audio = reader.number("vocab_size", low=2), reader.number("codebook_vocab_size", default=2049, low=2)
    codebooks = reader.number("num_codebooks", default=32)
    _require(reader, "audio_pad_token_id", vocabulary + codebooks * audio)
    # Kept beside the configuration: see `transformers_files`.
    stt = reader.take("stt_config", dict, {})
    return {
        **_trunk(reader, _half(reader, "ffn_dim")),
        "context": reader.number("sliding_window"),
        "n_q": codebooks,
        "dep_q": 0,
        "card": audio - 1,
        # One row more is for the initial token.
        "text_card": vocabulary - 1,
        "existing_text_padding_id": 3,
        "delays": [0] * (codebooks + 1),
        "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
        "model_type": "stt",
        **({"stt_config": stt} if stt else {}),
    }


def _text(reader: _DefaultReader, kind: str) -> dict[str, Any]:
    vocabulary = reader.number("vocab_size")
    pad = reader.take("pad_token_id", int, 3)
    return {
        **_trunk(reader, reader.number("intermediate_size")),
        "positional_embedding": "rope" if kind == "helium" else "rope_concat",
        "context": reader.number("max_position_embeddings"),
        "n_q": 0,
        "dep_q": 0,
        "card": 2048,
        "text_card": vocabulary,
        # A text model has no initial token, hence no row for it.
        "text_in_vocab_size": vocabulary,
        "existing_text_padding_id": pad if 0 <= pad < vocabulary else 0,
        "delays": [0],
        "model_type": "moshi",
    }


def _require(reader: Reader, key: str, value: Any) -> None:
    found = reader.take(key, type(value), value)
    if found != value:
        raise ConfigError(
            f"{reader.where}: {key!r} should be {value!r} for a model of this family, found {quoted(found)}."
        )


def _norm(reader: _DefaultReader) -> str:
    eps = reader.number("rms_norm_eps", NUMBER, low=None)
    if eps not in _NORMS:
        raise ConfigError(
            f"{reader.where}: 'rms_norm_eps' should be one of {', '.join(map(str, _NORMS))}, found {eps}."
        )
    return _NORMS[eps]


def _half(reader: _DefaultReader, key: str) -> int:
    size = reader.number(key)
    if size % 2:
        raise ConfigError(f"{reader.where}: {key!r} should be even, found {size}.")
    return size // 2


def _rotary_base(reader: _DefaultReader) -> float:
    """`rope_theta`, which newer versions keep in `rope_parameters`; scaled positions are not ours."""
    scaling = reader.take("rope_scaling", dict, {})
    parameters = reader.take("rope_parameters", dict, {})
    kind = {**scaling, **parameters}.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise ConfigError(f"{reader.where}: rotary positions of the type {quoted(kind)} are not supported.")
    base = reader.number("rope_theta", NUMBER, parameters.get("rope_theta", REQUIRED))
    base = parameters.get("rope_theta", base)
    return int(base) if float(base).is_integer() else base


def feedforward_of(hidden: int, dim: int) -> int:
    """The feed-forward size whose gated width is `hidden` (lm.md 1.3)."""
    for size in (4 * dim, -(-3 * hidden // 2), -(-3 * hidden // 2) + 1):
        if gated_hidden(size, dim) == hidden:
            return size
    raise ConfigError(f"config: no feed-forward size gives a gated width of {hidden} with a width of {dim}.")


def _ratio(feedforward: int, dim: int) -> float | int:
    """`hidden_scale` such that `int(hidden_scale * dim)` is `feedforward`."""
    scale = feedforward / dim
    while int(scale * dim) < feedforward:
        scale *= 1 + 2**-52
    return int(scale) if scale.is_integer() else scale


def codec_config(data: dict) -> dict[str, Any] | None:
    """Kyutai's description of the codec that a speech model of transformers holds; None where its configuration has none."""
    inside = data.get("audio_encoder_config") or data.get("codec_config")
    return mimi_config(inside) if isinstance(inside, dict) else None


def mimi_config(data: dict) -> dict[str, Any]:
    """Kyutai's description of a codec of transformers, with every key that the original PyTorch program asks for."""
    reader = Reader({k: v for k, v in data.items() if v is not None}, "config (mimi)")
    take = reader.take
    known = presets.MIMI_V0_1
    dim = take("hidden_size", int, 512, low=1)
    for key, value in (
        ("audio_channels", 1), ("use_causal_conv", True), ("norm_eps", 1e-5), ("hidden_act", "gelu"), ("attention_bias", False),
        ("upsample_groups", dim),
    ):  # fmt: skip
        _require(reader, key, value)
    ratios = reader.take_ints("upsampling_ratios", [8, 6, 5, 4], low=1, most=MOST_BLOCKS)
    rate = take("sampling_rate", int, 24000, low=1)
    steps = rate
    for ratio in ratios:
        steps //= ratio
    heads = take("num_attention_heads", int, 8, low=1)
    _require(reader, "head_dim", dim // heads)
    codebook_dim = take("codebook_dim", int, 256, low=1)
    _require(reader, "vector_quantization_hidden_dimension", codebook_dim)
    return {
        "sample_rate": rate,
        "channels": 1,
        # A downsampling by two follows the convolutions, unless a rate is given.
        "frame_rate": take("frame_rate", NUMBER, take("_frame_rate", NUMBER, steps / 2)),
        "seanet": {
            "channels": 1,
            "dimension": dim,
            "n_filters": take("num_filters", int, 64, low=1),
            "n_residual_layers": take("num_residual_layers", int, 1, low=0),
            "ratios": ratios,
            "kernel_size": take("kernel_size", int, 7, low=1),
            "residual_kernel_size": take("residual_kernel_size", int, 3, low=1),
            "last_kernel_size": take("last_kernel_size", int, 3, low=1),
            "dilation_base": take("dilation_growth_rate", int, 2, low=1),
            "compress": take("compress", int, 2, low=1),
            "causal": True,
            "activation": "ELU",
            "norm": "none",
            "disable_norm_outer_blocks": 0,
            "true_skip": not take("use_conv_shortcut", bool, False),
            "pad_mode": take("pad_mode", str, "constant", one_of=("constant", "replicate")),
        },
        "transformer": {
            **known["transformer"],
            "causal": True,
            "conv_layout": True,
            "input_dimension": dim,
            "output_dimensions": [dim],
            "d_model": dim,
            "num_heads": heads,
            "num_layers": take("num_hidden_layers", int, 8, low=0),
            "dim_feedforward": take("intermediate_size", int, 2048, low=1),
            "context": take("sliding_window", int, 250, low=1),
            "max_period": take("rope_theta", NUMBER, 10000),
            "layer_scale": take("layer_scale_initial_scale", NUMBER, 0.01),
            "kv_repeat": heads // take("num_key_value_heads", int, heads, low=1),
        },
        "quantizer": {
            "dimension": codebook_dim,
            "input_dimension": dim,
            "output_dimension": dim,
            "n_q": take("num_quantizers", int, 32, low=1),
            "n_q_semantic": take("num_semantic_quantizers", int, 1, low=1),
            "bins": take("codebook_size", int, 2048, low=2),
        },
    }
