"""Published configurations as data: what a checkpoint without `config.json` is, and the codec all of them share."""

from __future__ import annotations

from typing import Any

MOSHI_NAME = "model.safetensors"
MIMI_NAME = "tokenizer-e351c8d8-checkpoint125.safetensors"
TOKENIZER_NAME = "tokenizer_spm_32k_3.model"

_COMMON: dict[str, Any] = {
    "card": 2048,
    "existing_text_padding_id": 3,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 1024,
    "depformer_num_heads": 16,
    "depformer_num_layers": 6,
    "depformer_dim_feedforward": 4224,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
}

# moshiko and moshika, and every checkpoint published without a model description.
MOSHI_7B: dict[str, Any] = {
    **_COMMON,
    "dim": 4096,
    "num_heads": 32,
    "num_layers": 32,
    "context": 3000,
    "max_period": 10000,
    "n_q": 16,
    "dep_q": 8,
    "text_card": 32000,
    "delays": [0] + ([0] + [1] * 7) * 2,
}

# PersonaPlex is Moshi 7B with a depth transformer that also predicts the user's codebooks.
PERSONAPLEX_7B: dict[str, Any] = {**MOSHI_7B, "dep_q": 16}

HIBIKI_1B: dict[str, Any] = {
    **_COMMON,
    "dim": 2048,
    "num_heads": 16,
    "num_layers": 16,
    "context": 3000,
    "max_period": 100000,
    "n_q": 16,
    "dep_q": 8,
    "text_card": 48000,
    "delays": [0] + ([0] + [2] * 7) * 2,
}

HIBIKI_1B_16RVQ: dict[str, Any] = {**HIBIKI_1B, "n_q": 32, "dep_q": 16, "delays": [0] + ([0] + [2] * 15) * 2}

HELIUM_1_PREVIEW_2B: dict[str, Any] = {
    "dim": 2560,
    "num_heads": 20,
    "num_layers": 24,
    "context": 4096,
    "max_period": 100000,
    "n_q": 0,
    "dep_q": 0,
    "card": 2048,
    "text_card": 48000,
    # A text model has no initial token, hence no row for it.
    "text_in_vocab_size": 48000,
    "delays": [0],
    "existing_text_padding_id": 3,
    "hidden_scale": 4.125,
    "layer_scale": None,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
}

# The codec of every published model (mimi.md 1.1).
MIMI_V0_1: dict[str, Any] = {
    "sample_rate": 24000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 512,
        "n_filters": 64,
        "n_residual_layers": 1,
        "ratios": [8, 6, 5, 4],
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "dilation_base": 2,
        "compress": 2,
        "true_skip": True,
        "pad_mode": "constant",
    },
    "transformer": {
        "d_model": 512,
        "num_heads": 8,
        "num_layers": 8,
        "dim_feedforward": 2048,
        "context": 250,
        "max_period": 10000,
        "positional_embedding": "rope",
        "norm": "layer_norm",
        "gating": "none",
        "layer_scale": 0.01,
    },
    "quantizer": {"dimension": 256, "n_q": 32, "bins": 2048},
}
