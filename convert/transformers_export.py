"""Which architecture of transformers holds a model, and the configuration files that go with it."""

from __future__ import annotations

from typing import Any

from moshi_mlx.config import LmConfig, MimiConfig, TransformerConfig
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.errors import ConfigError

_EPS = {"rms_norm_f32": 1e-8, "rms_norm": 1e-5}
_CLASSES = {
    "moshi": "MoshiForConditionalGeneration",
    "kyutai_speech_to_text": "KyutaiSpeechToTextForConditionalGeneration",
    "helium": "HeliumForCausalLM",
    "llama": "LlamaForCausalLM",
}


def architecture(cfg: LmConfig) -> str:
    """The `model_type` that computes what the model does; `ConfigError` names what transformers has no place for."""
    stack = cfg.transformer
    if cfg.n_q == 0:
        kind = "llama" if stack.positional_embedding == "rope_concat" else "helium"
    else:
        kind = "moshi" if cfg.dep_q else "kyutai_speech_to_text"
    unsupported = [what for what, found in _obstacles(cfg, kind).items() if found]
    if unsupported:
        raise ConfigError(
            f"transformers has no place for {' and '.join(unsupported)}; convert with --to mlx or --to pytorch."
        )
    return kind


def _obstacles(cfg: LmConfig, kind: str) -> dict[str, bool]:
    stack, dep = cfg.transformer, cfg.depformer
    found = {
        f"positions of the kind {stack.positional_embedding!r}": stack.positional_embedding not in ("rope", "rope_concat"),
        f"the norm {stack.norm!r}": stack.norm not in _EPS,
        f"the gate {stack.gating!r}": stack.gating not in ("silu", "gelu", "relu"),
        "cross attention": stack.cross_attention,
        "layer scales": stack.layer_scale is not None,
        "an unbounded window": stack.context is None,
        "conditioners": bool(cfg.conditioners),
        "extra heads": cfg.extra_heads_num_heads > 0,
        "two text streams in one": cfg.demux_second_stream,
        "normalised embeddings": cfg.norm_emb,
        "biases of the output heads": cfg.bias_proj,
    }  # fmt: skip
    if kind == "moshi":
        half = dep.num_slices
        identity = list(range(half))
        found |= {
            f"{cfg.n_q} codebooks of which {half} are generated": cfg.n_q != 2 * half,
            f"the delays {cfg.delays}": cfg.delays != [0, *([0] + [1] * (half - 1)) * 2],
            "depth weights shared by several codebooks": dep.weight_sets != identity or dep.input_sets != identity,
            "depth layers of different widths": len(set(dep.feedforwards)) > 1,
            "low-rank embeddings": dep.low_rank_embeddings is not None,
            "norms in front of the codebook heads": dep.norm is not None,
            "positions in the depth transformer": dep.transformer.positional_embedding != "none",
            "a depth transformer without gate": dep.transformer.gating not in ("silu", "gelu", "relu"),
            "layer scales in the depth transformer": dep.transformer.layer_scale is not None,
            "text tables of other sizes": (cfg.text_out_vocab_size, cfg.text_in_vocab_size)
            != (cfg.text_card, cfg.text_card + 1),
        }  # fmt: skip
    if kind == "kyutai_speech_to_text":
        found |= {
            "delays": any(cfg.delays),
            "text tables of other sizes": cfg.text_out_vocab_size > cfg.text_in_vocab_size,
        }
    return found


def lm_config(config: CheckpointConfig, codec: MimiConfig | None, dtype: str) -> dict[str, Any]:
    """`config.json` of transformers. `dtype` is the type of the weights in its words."""
    cfg = config.lm
    kind = architecture(cfg)
    common = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        **_stack(cfg.transformer),
        "vocab_size": cfg.text_card,
        "rope_theta": cfg.transformer.max_period,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
    }
    codec_config = mimi_config(codec) if codec is not None else None
    if kind == "moshi":
        dep = cfg.depformer.slice_transformer(0)
        return {
            **common,
            "ffn_dim": 2 * cfg.transformer.hidden,
            "sliding_window": cfg.transformer.context,
            "max_position_embeddings": cfg.transformer.context,
            "num_codebooks": cfg.dep_q,
            "audio_vocab_size": cfg.card,
            "depth_decoder_config": {
                "model_type": "moshi_depth",
                **_stack(dep, cfg.transformer.norm),
                "ffn_dim": 2 * dep.hidden,
                "max_position_embeddings": cfg.dep_q + 1,
                "sliding_window": cfg.dep_q,
            },
            **({"audio_encoder_config": codec_config} if codec_config else {}),
        }
    if kind == "kyutai_speech_to_text":
        return {
            **common,
            "vocab_size": cfg.text_in_vocab_size,
            "ffn_dim": 2 * cfg.transformer.hidden,
            "sliding_window": cfg.transformer.context,
            "max_position_embeddings": cfg.transformer.context,
            "num_codebooks": cfg.n_q,
            "codebook_vocab_size": cfg.card + 1,
            "audio_bos_token_id": cfg.card,
            "audio_pad_token_id": cfg.text_in_vocab_size + cfg.n_q * (cfg.card + 1),
            "bos_token_id": cfg.text_card,
            "pad_token_id": cfg.padding_token,
            **({"codec_config": codec_config} if codec_config else {}),
        }
    return {
        **common,
        "intermediate_size": cfg.transformer.hidden,
        "max_position_embeddings": cfg.transformer.context,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": cfg.padding_token,
    }


def _stack(stack: TransformerConfig, norm: str | None = None) -> dict[str, Any]:
    return {
        "hidden_size": stack.d_model,
        "num_hidden_layers": stack.num_layers,
        "num_attention_heads": stack.num_heads,
        "num_key_value_heads": stack.kv_heads,
        "head_dim": stack.head_dim,
        "hidden_act": stack.gating,
        "rms_norm_eps": _EPS[norm or stack.norm],
    }


def generation_config(config: CheckpointConfig) -> dict[str, Any] | None:
    """How its `generate` samples, where it asks for more than its own defaults."""
    cfg, sampling = config.lm, config.generation
    kind = architecture(cfg)
    if kind == "moshi":
        steps = cfg.dep_q + 1
        return {
            **_sampling(sampling.temp_text, sampling.top_k_text),
            "bos_token_id": cfg.text_card,
            "pad_token_id": cfg.text_card,
            "depth_decoder_config": {
                **_sampling(sampling.temp, sampling.top_k),
                "min_length": steps,
                "max_length": steps,
            },
        }
    if kind == "kyutai_speech_to_text":
        return {
            "audio_window_size": 1,
            "bos_token_id": cfg.text_card,
            "pad_token_id": cfg.padding_token,
            "cache_implementation": "static",
            "codec_cache_implementation": "static",
            "codec_use_cache": True,
        }
    return None


def _sampling(temperature: float, top_k: int) -> dict[str, Any]:
    return {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}


def feature_config(config: CheckpointConfig, codec: MimiConfig) -> dict[str, Any] | None:
    """`preprocessor_config.json`: how sound is prepared."""
    kind = architecture(config.lm)
    if kind == "kyutai_speech_to_text":
        stt = config.stt
        return {
            "feature_extractor_type": "KyutaiSpeechToTextFeatureExtractor",
            "feature_size": 1,
            "sampling_rate": codec.sample_rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "audio_delay_seconds": stt.audio_delay_seconds if stt else 0.0,
            "audio_silence_prefix_seconds": stt.audio_silence_prefix_seconds if stt else 0.0,
        }
    return _encodec_features(codec) if kind == "moshi" else None


def _encodec_features(codec: MimiConfig) -> dict[str, Any]:
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": 1,
        "sampling_rate": codec.sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def mimi_config(codec: MimiConfig) -> dict[str, Any]:
    """`config.json` of the codec alone, also the part of a model's configuration that speaks of it."""
    seanet, stack = codec.seanet, codec.transformer
    obstacles = {
        f"the norm {stack.norm!r} of a codec": stack.norm != "layer_norm",
        f"the gate {stack.gating!r} of a codec": stack.gating != "none",
        f"positions of the kind {stack.positional_embedding!r} in a codec": stack.positional_embedding != "rope",
        "a codec without layer scales": stack.layer_scale is None,
    }
    for what, found in obstacles.items():
        if found:
            raise ConfigError(f"transformers has no place for {what}; convert with --to mlx or --to pytorch.")
    return {
        "architectures": ["MimiModel"],
        "model_type": "mimi",
        "sampling_rate": codec.sample_rate,
        "audio_channels": 1,
        "hidden_size": seanet.dimension,
        "num_filters": seanet.n_filters,
        "num_residual_layers": seanet.n_residual_layers,
        "upsampling_ratios": list(seanet.ratios),
        "kernel_size": seanet.kernel_size,
        "last_kernel_size": seanet.last_kernel_size,
        "residual_kernel_size": seanet.residual_kernel_size,
        "dilation_growth_rate": seanet.dilation_base,
        "use_causal_conv": True,
        "pad_mode": seanet.pad_mode,
        "compress": seanet.compress,
        "trim_right_ratio": 1.0,
        "use_conv_shortcut": not seanet.true_skip,
        "codebook_size": codec.bins,
        "codebook_dim": codec.codebook_dim,
        "vector_quantization_hidden_dimension": codec.codebook_dim,
        "num_quantizers": codec.num_codebooks,
        "num_semantic_quantizers": codec.n_semantic,
        "upsample_groups": seanet.dimension,
        "num_hidden_layers": stack.num_layers,
        "intermediate_size": stack.dim_feedforward,
        "num_attention_heads": stack.num_heads,
        "num_key_value_heads": stack.kv_heads,
        "head_dim": stack.head_dim,
        "hidden_act": "gelu",
        "max_position_embeddings": 8000,
        "norm_eps": 1e-5,
        "rope_theta": float(stack.max_period),
        "sliding_window": stack.context,
        "layer_scale_initial_scale": stack.layer_scale,
        "attention_bias": False,
        "frame_rate": codec.frame_rate,
    }
