"""Import paths and call shapes that scripts of the published package use."""

from __future__ import annotations

import importlib
import inspect

import pytest

from moshi_mlx import models, utils


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("moshi_mlx", ["models", "modules", "utils", "__version__"]),
        ("moshi_mlx.models", ["Lm", "LmConfig", "LmGen", "config_v0_1", "config1b_202412", "config1b_202412_16rvq", "config_helium_1_preview_2b", "mimi", "mimi_202407", "generate"]),
        ("moshi_mlx.models.mimi", ["Mimi", "MimiConfig", "mimi_202407"]),
        ("moshi_mlx.models.generate", ["LmGen"]),
        ("moshi_mlx.models.tts", ["TTSModel", "TTSResult", "DEFAULT_DSM_TTS_REPO", "DEFAULT_DSM_TTS_VOICE_REPO", "Entry", "State", "StateMachine", "TokenIds", "script_to_entries"]),
        ("moshi_mlx.utils", ["Sampler"]),
        ("moshi_mlx.utils.sampling", ["Sampler"]),
        ("moshi_mlx.utils.loaders", ["hf_get"]),
        ("moshi_mlx.client_utils", ["make_log"]),
        ("moshi_mlx.modules.conditioner", ["ConditionAttributes", "ConditionTensor", "TensorCondition", "LutConditioner", "dropout_all_conditions"]),
        ("moshi_mlx.session", ["Session", "Frame"]),
    ],
)  # fmt: skip
def test_import_paths(module, names):
    loaded = importlib.import_module(module)
    for name in names:
        assert hasattr(loaded, name), f"{module}.{name}"


def test_call_shapes():
    gen = list(inspect.signature(models.LmGen).parameters)
    assert gen[:9] == [
        "model",
        "max_steps",
        "text_sampler",
        "audio_sampler",
        "batch_size",
        "cfg_coef",
        "check",
        "on_text_hook",
        "on_audio_hook",
    ]
    step = list(inspect.signature(models.LmGen.step).parameters)
    assert step[1:4] == ["other_audio_tokens", "ct", "cross_attention_src"]
    sampler = list(inspect.signature(utils.Sampler).parameters)
    assert sampler == ["temp", "top_p", "top_k", "min_p", "min_tokens_to_keep", "logit_bias"]
    for name in ("encode", "decode", "encode_step", "decode_step", "reset_all", "load_pytorch_weights", "warmup"):
        assert callable(getattr(models.mimi.Mimi, name))
    for name in ("load_weights", "load_pytorch_weights", "warmup"):
        assert callable(getattr(models.Lm, name))


def test_hf_get(tmp_path):
    from pathlib import Path

    from moshi_mlx.utils.loaders import hf_get

    assert hf_get(Path("a/b")) == Path("a/b")
    assert hf_get("file:///a/b") == Path("/a/b")
    assert hf_get("a/b") == Path("a/b")
    here = tmp_path / "here"
    here.write_text("x")
    assert hf_get(str(here), "owner/repo", check_local_file_exists=True) == here


def test_make_log():
    from moshi_mlx.client_utils import make_log

    assert "Info" in make_log("info", "hello")
    assert make_log("warning", "hello").endswith("hello")
    with pytest.raises(ValueError, match="loud"):
        make_log("loud", "hello")


def test_a_published_speech_to_text_script_runs(tmp_path):
    """The shape of Kyutai's file transcription script: load by hand, step frame by frame, read the pause predictor."""
    import json

    import mlx.core as mx
    import numpy as np
    from random_checkpoint import TINY_LM, TINY_MIMI, write_lm, write_mimi

    config = {**TINY_LM, "n_q": 8, "dep_q": 0, "delays": [0] * 9, "model_type": "stt", "extra_heads_num_heads": 4}
    write_lm(tmp_path / "model.safetensors", config, None, seed=1)
    write_mimi(tmp_path / "mimi.safetensors", TINY_MIMI, seed=1)
    (tmp_path / "config.json").write_text(json.dumps(config))

    lm_config = models.LmConfig.from_config_dict(json.loads((tmp_path / "config.json").read_text()))
    model = models.Lm(lm_config)
    model.set_dtype(mx.bfloat16)
    model.load_weights(str(tmp_path / "model.safetensors"), strict=True)
    audio_tokenizer = models.mimi.Mimi(models.mimi.MimiConfig.from_dict(TINY_MIMI))
    audio_tokenizer.load_pytorch_weights(str(tmp_path / "mimi.safetensors"), strict=True)
    model.warmup()
    gen = models.LmGen(
        model=model,
        max_steps=3,
        text_sampler=utils.Sampler(top_k=25, temp=0),
        audio_sampler=utils.Sampler(top_k=250, temp=0.8),
        check=False,
    )
    audio = mx.array(0.1 * np.random.default_rng(0).standard_normal((1, 1920 * 6)).astype(np.float32))
    for start in range(0, audio.shape[-1], 1920):
        block = audio[:, None, start : start + 1920]
        other_audio_tokens = audio_tokenizer.encode_step(block).transpose(0, 2, 1)
        text_token, vad_heads = gen.step_with_extra_heads(other_audio_tokens[0])
        assert 0 <= vad_heads[2][0, 0, 0].item() <= 1
        assert isinstance(text_token[0].item(), int)
        assert gen.last_audio_tokens() is None


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_a_published_microphone_script_runs(tmp_path, bits):
    """The shape of Kyutai's live transcription script: packed as the file's name says, codes from rustymimi's encoder."""
    import mlx.core as mx
    import mlx.nn as nn
    import numpy as np
    from random_checkpoint import TINY_STT, write_lm

    name = "model.safetensors" if bits is None else f"model.q{bits}.safetensors"
    write_lm(tmp_path / name, TINY_STT, bits, seed=1)
    lm_config = models.LmConfig.from_config_dict(TINY_STT)
    model = models.Lm(lm_config)
    model.set_dtype(mx.bfloat16)
    if name.endswith(".q4.safetensors"):
        nn.quantize(model, bits=4, group_size=32)
    elif name.endswith(".q8.safetensors"):
        nn.quantize(model, bits=8, group_size=64)
    model.load_weights(str(tmp_path / name), strict=True)
    other_codebooks = lm_config.other_codebooks
    assert max(lm_config.generated_codebooks, other_codebooks) == 32
    model.warmup()
    gen = models.LmGen(
        model=model,
        max_steps=2,
        text_sampler=utils.Sampler(top_k=25, temp=0),
        audio_sampler=utils.Sampler(top_k=250, temp=0.8),
        check=False,
    )
    rng, said = np.random.default_rng(0), []
    for _ in range(6):
        encoded = rng.integers(0, 256, (1, 32, 1)).astype(np.uint32)
        other_audio_tokens = mx.array(encoded).transpose(0, 2, 1)[:, :, :other_codebooks]
        text_token, vad_heads = gen.step_with_extra_heads(other_audio_tokens[0])
        assert [h.shape for h in vad_heads] == [(1, 1, 6)] * 4
        assert 0 <= vad_heads[2][0, 0, 0].item() <= 1
        said.append(text_token[0].item())
        assert gen.last_audio_tokens() is None
    assert len(set(said)) > 1
