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
        ("moshi_mlx.models.lm", ["Lm", "LmConfig", "DepFormerConfig", "TransformerConfig", "ScaledEmbedding", "config_v0_1", "config1b_202412", "config1b_202412_16rvq", "config_helium_1_preview_2b"]),
        ("moshi_mlx.utils.sampling", ["Sampler", "top_p_sampling", "top_k_sampling", "min_p_sampling", "categorical_sampling"]),
        ("moshi_mlx.utils.loaders", ["hf_get"]),
        ("moshi_mlx.client_utils", ["make_log", "colorize", "Printer", "RawPrinter", "AnyPrinter", "Line", "LineEntry"]),
        ("moshi_mlx.modules.conditioner", ["ConditionAttributes", "ConditionTensor", "TensorCondition", "LutConditioner", "dropout_all_conditions", "create_sin_embedding"]),
        ("moshi_mlx.modules", ["Transformer", "TransformerConfig", "SeanetConfig", "SeanetEncoder", "SeanetDecoder"]),
        ("moshi_mlx.modules.transformer", ["Transformer", "TransformerConfig"]),
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
    for name in ("encode", "decode", "encode_step", "decode_step"):
        assert list(inspect.signature(getattr(models.mimi.Mimi, name)).parameters)[1] == "xs"
    for name in ("load_weights", "load_pytorch_weights", "warmup"):
        assert callable(getattr(models.Lm, name))
    assert list(inspect.signature(models.Lm.sample).parameters)[1:] == [
        "text_token_ids", "audio_token_ids", "text_sampler", "audio_sampler", "ct", "cross_attention_src", "cfg_coef", "on_text_hook",
        "on_audio_hook",
    ]  # fmt: skip
    assert list(inspect.signature(models.Lm.forward_text).parameters)[1:] == ["token_ids", "cross_attention_src"]
    embedding = inspect.signature(models.lm.ScaledEmbedding).parameters
    assert list(embedding) == ["num_embeddings", "embedding_dim", "zero_idx", "low_rank", "demux_second_stream"]


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


def test_text_goes_on_in_the_stream_of_a_model():
    """Piece by piece as in one go; `reset_stream` begins anew."""
    import mlx.core as mx
    from toy import LM, randomise

    lm = randomise(models.Lm(models.LmConfig.from_config_dict(LM)), 3)
    tokens = mx.array([[1, 5, 9, 2, 7, 4]])
    whole = lm.forward_text(tokens)[1]
    lm.reset_stream()
    pieces = [lm.forward_text(tokens[:, i : i + 2]) for i in range(0, 6, 2)]
    assert pieces[0][0].shape == (1, 2, 32)
    assert mx.allclose(mx.concatenate([logits for _, logits in pieces], axis=1), whole, atol=1e-4).item()
    assert mx.allclose(whole, lm(tokens), atol=1e-4).item()


@pytest.mark.parametrize("cfg_coef", [1.0, 2.0])
def test_frames_by_sample_are_those_of_the_engine(cfg_coef):
    """Given the delayed columns by hand, greedily: the tokens are those that `LmGen` draws."""
    import mlx.core as mx
    import numpy as np
    from toy import LM, randomise

    from moshi_mlx.engine.step import Conditions

    config = {**LM, "delays": [0] * 7}
    lm = randomise(models.Lm(models.LmConfig.from_config_dict(config)), 3)
    greedy = utils.Sampler(temp=0)
    rows = Conditions(mx.zeros((2, 1, 32))) if cfg_coef != 1 else None
    gen = models.LmGen(lm, 10, greedy, greedy, cfg_coef=cfg_coef, compile=False, conditions=rows)
    rng = np.random.default_rng(1)
    text, own = mx.array([[30]]), [mx.array([[24]])] * 3
    seen = []
    for step in range(5):
        user = mx.array(rng.integers(0, 24, (1, 3)))
        # Before the first frame every channel reads its initial token.
        audio = [*own, *(user[:, k : k + 1] if step else mx.array([[24]]) for k in range(3))]
        t, a = lm.sample(
            text,
            audio,
            greedy,
            greedy,
            cfg_coef=cfg_coef,
            on_text_hook=lambda t: seen.append(t.shape),
            on_audio_hook=lambda a: seen.append(a.shape),
        )
        expected = gen.step(user)
        assert t.item() == expected.item()
        assert a[0, :, 0].tolist() == gen.last_audio_tokens()[0].tolist()
        text, own = t, [a[:, k].T for k in range(3)]
    assert seen[:2] == [(1, 1), (1, 3, 1)]
    assert (gen.zero_token, gen.ungenerated_token) == (-1, -2)


def test_draws_by_one_rule():
    import mlx.core as mx

    from moshi_mlx.utils import sampling

    mx.random.seed(1)
    logits = mx.broadcast_to(mx.array([5.0, 4.9, 1.0, -3.0]), (400, 4))
    assert set(sampling.top_k_sampling(logits, 2).tolist()) == {0, 1}
    assert set(sampling.top_p_sampling(logits, 0.3, 1.0).tolist()) == {0}
    assert set(sampling.min_p_sampling(logits, 0.5).tolist()) == {0, 1}
    assert set(sampling.min_p_sampling(logits, 0.99, min_tokens_to_keep=3, temperature=10.0).tolist()) == {0, 1, 2}
    assert set(sampling.categorical_sampling(logits, 100.0).tolist()) == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="from 0 to 1"):
        sampling.min_p_sampling(logits, 1.5)


def test_scaled_embeddings():
    import mlx.core as mx

    from moshi_mlx.models.lm import ScaledEmbedding

    table = ScaledEmbedding(10, 8)
    assert mx.array_equal(table(mx.array([[3, -1]]))[0, 0], table.weight[3]).item()
    assert not table(mx.array([[3, -1]]))[0, 1].any().item()
    assert ScaledEmbedding(10, 8, low_rank=4)(mx.array([1])).shape == (1, 8)
    both = ScaledEmbedding(10, 8, demux_second_stream=True)
    assert mx.allclose(
        both(mx.array([10 * 4 + 2])), both.out1(table_row(both, 2)) + both.out2(table_row(both, 3))
    ).item()
    with pytest.raises(ValueError, match="-1 in every model"):
        ScaledEmbedding(10, 8, zero_idx=-2)


def table_row(table, index):
    return table.weight[index][None]


def test_sinusoidal_positions():
    import mlx.core as mx
    import numpy as np

    from moshi_mlx.modules.conditioner import create_sin_embedding

    found = create_sin_embedding(mx.arange(5).reshape(1, 5, 1), 8)
    rates = 10000.0 ** (np.arange(4) / 3)
    phase = np.arange(5)[:, None] / rates
    np.testing.assert_allclose(found[0], np.concatenate([np.cos(phase), np.sin(phase)], axis=1), atol=1e-6)
    assert create_sin_embedding(mx.zeros((2, 3, 1)), 4, dtype=mx.float16).dtype == mx.float16


class Screen:
    """What a terminal shows of what is written: text, carriage returns, backspaces and colours."""

    def __init__(self):
        self.lines, self.column = [[]], 0

    def write(self, text):
        import re

        for c in re.sub("\033\\[[0-9;]*m", "", text):
            if c == "\n":
                self.lines.append([])
            if c in "\r\n":
                self.column = 0
            elif c == "\b":
                self.column -= 1
            else:
                self.lines[-1][self.column : self.column + 1] = [c]
                self.column += 1

    def flush(self):
        pass

    @property
    def shown(self):
        return ["".join(line).rstrip() for line in self.lines]


def test_a_column_of_words():
    from moshi_mlx.client_utils import Printer

    screen, errors = Screen(), Screen()
    printer = Printer(20, screen, errors)
    printer.print_header()
    for token in (" Hello", " there", ",", " won", "der", "ful", " people", "."):
        for _ in range(6):
            printer.print_pending()
        printer.print_token(token)
    printer.print_lag()
    printer.log("info", "bye")
    printer.print_token(" x" * 3)
    assert screen.shown == [
        " --------------------", "|  Hello there,      |", "| wonderful people.  |", "| [LAG]", " x x x",
    ]  # fmt: skip
    assert errors.shown[0] == "Info: bye"


def test_a_word_longer_than_the_column_is_cut():
    from moshi_mlx.client_utils import Printer

    screen = Screen()
    printer = Printer(12, screen, screen)
    printer.print_header()
    for letter in "abcdefghijklmnopqrstuvwxyz":
        printer.print_token(letter)
    assert "".join(line.strip("| -") for line in screen.shown) == "abcdefghijklmnopqrstuvwxyz"
    assert all(len(line) <= 14 for line in screen.shown)


def test_raw_text():
    import io

    from moshi_mlx.client_utils import RawPrinter

    out, err = io.StringIO(), io.StringIO()
    printer = RawPrinter(out, err)
    printer.print_header()
    for token in (" a", " b"):
        printer.print_pending()
        printer.print_token(token)
    printer.print_lag()
    printer.log("warning", "slow")
    assert out.getvalue() == " a b"
    assert "[LAG]" in err.getvalue()
    assert err.getvalue().endswith("Warning: slow\n")


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
