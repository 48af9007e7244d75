"""Scripts of the published package that build a model by hand, and reset it between two recordings."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from random_checkpoint import TINY_LM, TINY_MIMI, TINY_STT, TINY_TTS
from toy import LM, randomise

from moshi_mlx import models, utils
from moshi_mlx.config import CheckpointConfig, parts, presets
from moshi_mlx.errors import ConfigError, InputError
from moshi_mlx.modules.conditioner import LutConditionerConfig, TensorConditionerConfig


@pytest.mark.parametrize(
    "path",
    [
        "models.lm.LmConfig", "models.tts.TTSModel", "models.mimi.Mimi", "models.generate.LmGen", "utils.sampling.Sampler", "utils.loaders.hf_get",
        "modules.transformer.TransformerConfig", "modules.conditioner.ConditionTensor",
    ],
)  # fmt: skip
def test_files_are_there_by_attribute(path):
    """In a process of its own: whoever has imported a file before has put it there."""
    code = f"import moshi_mlx; from moshi_mlx import {path.split('.')[0]}; moshi_mlx.{path}"
    subprocess.run([sys.executable, "-c", code], check=True)


def stack(**sizes):
    """Everything a script has to say of a stack, none of it having a default there."""
    return models.lm.TransformerConfig(
        causal=True, norm_first=True, bias_ff=False, bias_attn=False, layer_scale=None, use_conv_block=False, use_conv_bias=True,
        cross_attention=sizes.pop("cross_attention", False), gating=True, norm="rms_norm", conv_layout=False, conv_kernel_size=3, kv_repeat=1,
        max_seq_len=4096, **sizes,
    )  # fmt: skip


def by_hand(data: dict) -> models.LmConfig:
    """A `config.json` taken apart as scripts do it."""
    conditioners = {
        name: LutConditionerConfig(**{k: c["lut"][k] for k in ("n_bins", "dim", "tokenizer", "possible_values")})
        if c["type"] == "lut" else TensorConditionerConfig(dim=c["tensor"]["dim"])
        for name, c in data.get("conditioners", {}).items()
    }  # fmt: skip
    return models.lm.LmConfig(
        transformer=stack(
            d_model=data["dim"], num_heads=data["num_heads"], num_layers=data["num_layers"],
            dim_feedforward=int(data.get("hidden_scale", 4) * data["dim"]), context=data["context"], max_period=data["max_period"],
            positional_embedding=data["positional_embedding"], cross_attention=data.get("cross_attention", False),
        ),
        depformer=models.lm.DepFormerConfig(
            transformer=stack(
                d_model=data.get("depformer_dim", 64), num_heads=data.get("depformer_num_heads", 4), num_layers=data.get("depformer_num_layers", 1),
                dim_feedforward=data.get("depformer_dim_feedforward", 256), context=8, max_period=10000,
                positional_embedding=data.get("depformer_pos_emb", "none"),
            ),
            num_slices=data["dep_q"],
            weights_per_step_schedule=data.get("depformer_weights_per_step_schedule"),
            low_rank_embeddings=data.get("depformer_low_rank_embeddings"),
        ),
        text_in_vocab_size=data["text_card"] + 1, text_out_vocab_size=data["text_card"], audio_vocab_size=data["card"] + 1,
        audio_codebooks=data["n_q"], audio_delays=data["delays"][1:], conditioners=conditioners,
        demux_second_stream=data.get("demux_second_stream", False), extra_heads_num_heads=data.get("extra_heads_num_heads", 0),
        extra_heads_dim=data.get("extra_heads_dim", 6),
    )  # fmt: skip


@pytest.mark.parametrize("data", [TINY_LM, TINY_STT, TINY_TTS, LM], ids=["moshi", "stt", "tts", "toy"])
def test_a_model_by_the_published_keywords_is_the_one_its_file_describes(data):
    found, expected = models.Lm(by_hand(data)), models.Lm(models.LmConfig.from_config_dict(data))
    weights = dict(_flat(expected.parameters()))
    assert {k: v.shape for k, v in _flat(found.parameters())} == {k: v.shape for k, v in weights.items()}
    randomise(expected, 3)
    found.load_weights(list(_flat(expected.parameters())))
    gens = [models.LmGen(lm, 4, utils.Sampler(temp=0), utils.Sampler(temp=0)) for lm in (found, expected)]
    rng = np.random.default_rng(1)
    for _ in range(4):
        # Of one conversation also without its row.
        codes = mx.array(rng.integers(0, data["card"], max(1, data["n_q"] - data["dep_q"])))
        assert gens[0].step(codes).tolist() == gens[1].step(codes[None]).tolist()
    assert mx.array_equal(gens[0].output.hidden, gens[1].output.hidden).item()


def _flat(tree):
    from mlx.utils import tree_flatten

    return tree_flatten(tree)


def test_configurations_say_what_the_published_ones_say():
    cfg = models.LmConfig.from_config_dict(TINY_TTS)
    assert isinstance(cfg, models.lm.LmConfig) and isinstance(models.config_v0_1(), models.LmConfig)
    assert vars(cfg.transformer) == vars(CheckpointConfig.from_dict(TINY_TTS).lm.transformer)
    schedule = TINY_TTS["depformer_weights_per_step_schedule"]
    assert cfg.depformer.weights_per_step_schedule == schedule
    assert models.config_v0_1().depformer.weights_per_step_schedule is None
    assert (cfg.text_in_vocab_size, cfg.text_out_vocab_size, cfg.audio_vocab_size) == (
        TINY_TTS["text_card"] + 1, TINY_TTS["text_card"], TINY_TTS["card"] + 1,
    )  # fmt: skip
    mimi = models.mimi_202407(8)
    assert (mimi.quantizer_nq, mimi.quantizer_bins, mimi.quantizer_dim) == (8, 2048, 256)
    # Positions as published, and what no model has.
    assert models.lm.DepFormerConfig(
        stack(d_model=8, num_heads=1, num_layers=1, dim_feedforward=8), 2, [0, 0], 4
    ).feedforwards == [8]
    with pytest.raises(ConfigError, match="'norm_first' is True in every model, found False"):
        models.lm.TransformerConfig(8, 1, 1, dim_feedforward=8, norm_first=False)
    with pytest.raises(ConfigError, match="'weights_per_step_schedule' should list 2 sets, found .0."):
        models.lm.DepFormerConfig(cfg.transformer, 2, [0])
    # Ours go on, with `rms_norm` as files mean it.
    assert models.lm.TransformerConfig(8, 1, 1, dim_feedforward=8, norm="rms_norm").norm == "rms_norm"
    assert isinstance(cfg, parts.LmConfig) and presets.MOSHI_7B["norm"] == models.config_v0_1().transformer.norm


def test_a_generator_is_read_and_begun_anew():
    lm = randomise(models.Lm(models.LmConfig.from_config_dict(LM)), 3)
    gen = models.LmGen(lm, 10, utils.Sampler(temp=0), utils.Sampler(temp=0))
    frames = [mx.array([[1, 2, 3]]), mx.array([[4, 5, 6]]), mx.array([[7, 8, 9]])]
    first = [gen.step(f).item() for f in frames]
    assert (gen.step_idx, gen.max_steps, gen.num_codebooks, gen.main_codebooks) == (3, 10, 7, 3)
    assert (gen.audio_delays, gen.max_delay, gen.audio_padding_token) == (
        LM["delays"][1:],
        max(LM["delays"]),
        LM["card"],
    )
    for cache in [*lm.transformer_cache, *lm.depformer_cache]:
        cache.reset()
    gen.step_idx = 0
    assert gen.step_idx == 0
    assert [gen.step(f).item() for f in frames] == first
    with pytest.raises(InputError, match="step_idx can be set to 0, to begin anew, found 7"):
        gen.step_idx = 7


def test_caches_forget_the_stream():
    """What scripts do between two recordings; the other side of the codec goes on."""
    lm = randomise(models.Lm(models.LmConfig.from_config_dict(LM)), 3)
    tokens = mx.array([[1, 5, 9]])
    first = lm.forward_text(tokens)[1]
    assert len(lm.transformer_cache) == LM["num_layers"]
    assert not mx.array_equal(lm.forward_text(tokens)[1], first).item()
    for cache in lm.transformer_cache:
        cache.reset()
    assert mx.array_equal(lm.forward_text(tokens)[1], first).item()

    mimi = randomise(models.mimi.Mimi(models.mimi.MimiConfig.from_dict(TINY_MIMI)), 3)
    pcm = mx.array(0.1 * np.random.default_rng(0).standard_normal((3, 1, 1, 1920)).astype(np.float32))
    codes = [mimi.encode_step(p) for p in pcm]
    sound = mimi.decode_step(codes[0])
    for cache in mimi.encoder_cache:
        cache.reset()
    assert all(mx.array_equal(mimi.encode_step(p), c).item() for p, c in zip(pcm, codes, strict=True))
    assert not mx.array_equal(mimi.decode_step(codes[0]), sound).item()
    for cache in mimi.decoder_cache:
        cache.reset()
    assert mx.array_equal(mimi.decode_step(codes[0]), sound).item()
