"""What a session cannot be made with, one sentence each, before anything is loaded."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import checkpoint
from moshi_mlx.arguments import number, one_of, seeds, shown, whole
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.errors import InputError, MoshiError
from moshi_mlx.modules.conditioner import ConditionAttributes
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session
from moshi_mlx.session.thread import SessionThread

# Of the constructor, and of `load` and `spawn`, which hand them on.
OPTIONS = [
    ({"batch": 0}, "batch should be a whole number from 1 to 1024, found 0"),
    ({"batch": -2}, "batch should be"),
    ({"batch": 1.0}, "batch should be"),
    ({"batch": True}, "batch should be"),
    ({"batch": "2"}, "batch should be"),
    ({"batch": 10**30}, "batch should be"),
    ({"seed": 1.5}, "seed should be a whole number, found 1.5"),
    ({"seed": "7"}, "seed should be a whole number, found '7'"),
    ({"seed": None}, "seed should be"),
    ({"seed": {0: 1}}, "seed should be"),
    ({"seed": {1}}, "seed should be"),
    ({"seed": [1, 2]}, "1 conversations need as many seeds, found 2"),
    ({"seed": [1.5]}, "every seed should be a whole number, found 1.5"),
    ({"batch": 2, "seed": [1, None]}, "every seed should be"),
    ({"kv_bits": 5}, "kv_bits should be 4, 8 or None, found 5"),
    ({"kv_bits": "8"}, "kv_bits should be"),
    ({"kv_bits": 8.0}, "kv_bits should be"),
    ({"kv_bits": True}, "kv_bits should be"),
    ({"cfg_coef": "2"}, "cfg_coef should be a number, found '2'"),
    ({"cfg_coef": float("nan")}, "cfg_coef should be a number, found nan"),
    ({"cfg_coef": float("inf")}, "cfg_coef should be"),
    ({"cfg_coef": None}, "cfg_coef should be"),
    ({"text_sampler": 0.7}, "text_sampler should be a Sampler, found 0.7"),
    ({"audio_sampler": lambda logits: logits}, "audio_sampler should be a Sampler"),
    ({"attributes": "very_good"}, "attributes should be a list of ConditionAttributes, found 'very_good'"),
    ({"attributes": [{"description": "good"}]}, "attributes should be a list of ConditionAttributes"),
    ({"attributes": [ConditionAttributes()] * 3}, "attributes should have 1 entries.*found 3"),
    ({"attributes": [ConditionAttributes()], "cfg_coef": 2.0}, "attributes should have 2 entries.*found 1"),
    ({"voice": 3}, "voice should be a name, a file or a Voice, found 3"),
    ({"text_prompt": ["a"]}, "text_prompt should be a text"),
    ({"repetition_penalty": 1.2}, "repetition_penalty should be a RepetitionPenalty, found 1.2"),
    ({"compile": 1}, "compile should be True or False, found 1"),
]  # fmt: skip
LOADING = [
    ({"context": -1}, "context should be a whole number from 1 to 1048576, found -1"),
    ({"context": 0}, "context should be"),
    ({"context": 2.5}, "context should be"),
    ({"context": "60"}, "context should be"),
    ({"dtype": "f32"}, "dtype should be mlx.core.bfloat16, mlx.core.float16 or mlx.core.float32, found 'f32'"),
    ({"dtype": mx.int8}, "dtype should be"),
    ({"dtype": np.float32}, "dtype should be"),
    ({"quantized": 3}, "quantized should be 4, 8 or None, found 3"),
    ({"quantized": "q4"}, "quantized should be"),
    ({"lora_scale": "x", "lora": "y"}, "lora_scale should be a number, found 'x'"),
    ({"lora_scale": float("nan"), "lora": "y"}, "lora_scale should be a number"),
    ({"lora": 3}, "lora should be a file or a folder, found 3"),
]


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint, dtype=mx.float32)


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_of_a_session(options, words, loaded):
    with pytest.raises(InputError, match=words):
        Session(loaded, **options)
    # Before the checkpoint is even looked for.
    with pytest.raises(InputError, match=words):
        Session.load("no such folder/x", **options)


@pytest.mark.parametrize(("options", "words"), LOADING)
def test_options_of_loading(options, words, tiny_checkpoint):
    with pytest.raises(InputError, match=words):
        Session.load(tiny_checkpoint, **options)
    with pytest.raises(InputError, match=words):
        Session.spawn(tiny_checkpoint, on_frame=print, **options)


def test_what_is_no_checkpoint(tiny_checkpoint):
    with pytest.raises(InputError, match="loaded should be what moshi_mlx.checkpoint.load returns"):
        Session(tiny_checkpoint)
    with pytest.raises(InputError, match="loaded should be"):
        Session(None)
    for name in ({"model": 7}, {"model": b"demo"}, {"hf_repo": 7}):
        with pytest.raises(InputError, match=r"(model|hf_repo) should be a name or a path, found (7|b'demo')"):
            Session.load(**name)
    with pytest.raises(TypeError, match="unexpected keyword argument 'sed'"):
        Session.load(tiny_checkpoint, sed=1)


def test_whole_numbers_of_numpy_are_whole_numbers(loaded):
    a = Session(loaded, seed=np.int64(4), batch=np.int32(2), compile=False)
    assert (a.seeds, a.batch) == ([4, 5], 2)
    assert Session(loaded, seed=np.array([7], np.uint8), compile=False).seeds == [7]
    assert Session(loaded, seed=-(2**70), compile=False).seeds == [-(2**70)]
    assert Session(loaded, seed=np.array(7), compile=False).seeds == [7]


def test_ends_of_a_source(loaded, tmp_path):
    from random_checkpoint import write

    write(tmp_path, "tiny-hibiki", None, seed=1)
    session = Session.load(tmp_path, compile=False)
    pcm = np.zeros(1920, np.float32)
    for ended in ([True, False], [], "yes", 1, None, [[True]], [None], [[True], [True, False]], object()):
        with pytest.raises(InputError, match="ended should be True or False for each of 1 conversations"):
            session.step(pcm, ended=ended)
    assert session.frames == 0
    session.step(pcm, ended=[True])
    session.step(pcm, ended=np.True_)
    with pytest.raises(InputError, match="only translation models"):
        Session(loaded, compile=False).step(pcm, ended=True)


@pytest.mark.parametrize("seed", [1.5, "1", True, [1]])
def test_a_new_conversation_needs_a_whole_seed(loaded, seed):
    session = Session(loaded, seed=3, compile=False)
    session.step(np.zeros(1920, np.float32))
    with pytest.raises(InputError, match="seed should be a whole number"):
        session.reset(seed)
    assert (session.seeds, session.frames) == ([3], 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temp": "0.7"}, "the temperature should be a number of at least 0, found '0.7'"),
        ({"temp": float("inf")}, "the temperature should be"),
        ({"top_k": 2.5}, "top_k should be a whole number of at least 0, found 2.5"),
        ({"top_k": "all"}, "top_k should be"),
        ({"top_p": None}, "top_p should be a number from 0 to 1, found None"),
        ({"min_p": float("nan")}, "min_p should be"),
        ({"min_tokens_to_keep": 1.5}, "min_tokens_to_keep should be"),
        ({"logit_bias": [1, 2]}, "logit_bias should be a dict"),
        ({"logit_bias": {-1: 2.0}}, "a token of logit_bias should be a whole number of at least 0, found -1"),
        ({"logit_bias": {"a": 2.0}}, "a token of logit_bias should be"),
        ({"logit_bias": {3: float("nan")}}, "the bias of token 3 should be a number"),
    ],
)
def test_samplers(options, words):
    with pytest.raises(InputError, match=words):
        Sampler(**options)


def test_a_bias_on_a_token_that_the_model_does_not_have(loaded):
    """Nothing stops MLX from writing there."""
    bias = Sampler(temp=0, logit_bias={10**6: 5.0})
    with pytest.raises(
        InputError, match="text_sampler: a token of logit_bias should be a whole number from 0 to 199, found 1000000"
    ):
        Session(loaded, text_sampler=bias)
    with pytest.raises(InputError, match="audio_sampler: a token of logit_bias should be a whole number from 0 to 255"):
        Session(loaded, audio_sampler=bias)
    with pytest.raises(InputError, match="from 0 to 199"):
        LmGen(loaded.lm, text_sampler=bias)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size should be"),
        ({"seed": 1.5}, "seed should be"),
        ({"cfg_coef": float("nan")}, "cfg_coef should be"),
        ({"kv_bits": 3}, "kv_bits should be"),
        ({"generated_codebooks": 9}, "generates up to 8 codebooks"),
        ({"generated_codebooks": 1.5}, "generated_codebooks should be a whole number"),
    ],
)
def test_generators(loaded, options, words):
    with pytest.raises(MoshiError, match=words):
        LmGen(loaded.lm, **options)


def test_threads(tiny_checkpoint):
    with pytest.raises(InputError, match="on_frame should be a function, found NoneType"):
        Session.spawn(tiny_checkpoint, on_frame=None)
    with pytest.raises(InputError, match="on_error should be a function, found int"):
        Session.spawn(tiny_checkpoint, on_frame=print, on_error=3)
    for lag in (-1, "a", float("nan")):
        with pytest.raises(InputError, match="max_lag should be a number of at least 0"):
            SessionThread(lambda: None, print, max_lag=lag)
    with (
        Session.spawn(tiny_checkpoint, on_frame=print, compile=False) as thread,
        pytest.raises(InputError, match="what is called should be a function, found str"),
    ):
        thread.call("state")


def test_sentences_stay_short():
    class Rude:
        def __repr__(self):
            raise RuntimeError("no")

    assert shown("x" * 10_000).endswith("... (str)") and len(shown("x" * 10_000)) < 100
    assert shown(Rude()) == "Rude"
    assert "\n" not in shown(np.zeros((9, 9)))
    for check in (
        lambda: whole("n", Rude()),
        lambda: number("n", Rude()),
        lambda: one_of("n", Rude(), (1, 2)),
        lambda: seeds(Rude(), 1),
    ):
        with pytest.raises(InputError, match="found Rude"):
            check()
