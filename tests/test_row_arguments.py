"""Rows, streams, generators and the codec by hand: what cannot be is one sentence, before anything has changed."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from speech_toys import _tidy, attributes, loaded, make_tts  # noqa: F401
from toy import make_lm, make_mimi

from moshi_mlx import checkpoint
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.errors import InputError
from moshi_mlx.models.mimi import Mimi
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session.conversations import Conversations, Talk
from moshi_mlx.speech_to_text.listener import Listener
from moshi_mlx.speech_to_text.rows import Hear, Transcriptions
from moshi_mlx.text_to_speech.rows import Speak, Utterances

SILENCE = np.zeros(1920, np.float32)
# Also negative ones, which Python would count from the end, and which MLX writes wherever they point.
NO_ROWS = [-1, 2, 10**30, 1.5, "0", None, True]


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def talks(model):
    rows = Conversations(model, 2, compile=False)
    list(rows.join(0, Talk(seed=1)))
    return rows


@pytest.fixture(scope="module")
def speech():
    return Utterances(make_tts(), 2, Speak(["a.wav"]), compile=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": 0}, "rows should be a whole number from 1 to 1024, found 0"),
        ({"rows": 10**9}, "rows should be"),
        ({"rows": 1.5}, "rows should be"),
        ({"rows": True}, "rows should be"),
        ({"rows": None}, "rows should be"),
        ({"capacity": 0}, "capacity should be a whole number from 1"),
        ({"capacity": 10**12}, "capacity should be"),
        ({"cfg_coef": float("nan")}, "cfg_coef should be a number"),
        ({"text_sampler": 0.7}, "text_sampler should be a Sampler"),
        ({"kv_bits": 3}, "kv_bits should be 4, 8 or None"),
        ({"compile": None}, "compile should be True or False"),
    ],
)
def test_a_batch_of_conversations(model, options, words):
    with pytest.raises(InputError, match=words):
        Conversations(model, **{"rows": 2, "compile": False, **options})


@pytest.mark.parametrize(
    ("talk", "words"),
    [
        (Talk(seed=1.5), "seed should be a whole number, found 1.5"),
        (Talk(seed=[1]), "seed should be"),
        (Talk(text_sampler=0.7), "text_sampler should be a Sampler"),
        (Talk(audio_sampler=Sampler), "audio_sampler should be a Sampler"),
        (Talk(attributes="very_good"), "attributes should be a list"),
        (Talk(cfg_coef=float("inf")), "cfg_coef should be a number"),
        (Talk(pad_bonus=float("nan")), "pad_bonus should be a number"),
        (Talk(tail=-1), "tail should be a whole number of at least 0"),
        (Talk(tail=1.5), "tail should be"),
        (Talk(voice=7), "voice should be"),
        (Talk(text_prompt=7), "text_prompt should be a text"),
        ({"seed": 1}, "a conversation's wishes should be a Talk"),
    ],
)
def test_a_talk_that_cannot_be(talks, talk, words):
    with pytest.raises(InputError, match=words):
        list(talks.join(1, talk))


@pytest.mark.parametrize("row", NO_ROWS)
def test_a_row_that_is_none(talks, speech, row):
    listener = Listener(loaded("tiny-stt").lm, loaded("tiny-stt").mimi, 2, compile=False)
    generator = LmGen(make_lm(), batch_size=2, support_out_of_sync=True, compile=False)
    for act in (
        lambda: list(talks.join(row)),
        lambda: talks.step({row: (SILENCE, False)}),
        lambda: talks.leave(row),
        lambda: talks.batch.step({row: SILENCE}),
        lambda: talks.batch.frames(row),
        lambda: listener.join(row),
        lambda: listener.listen_some({row: SILENCE}),
        lambda: list(speech.join(row)),
        lambda: generator.join(row),
        lambda: generator.steps_of(row),
    ):
        with pytest.raises(InputError, match="a row should be a whole number from 0 to 1, found"):
            act()
    assert talks.step({0: (SILENCE, False)})[0].items


@pytest.mark.parametrize(
    ("speak", "words"),
    [
        (Speak("a.wav"), "voices should be a list of names and files, found 'a.wav'"),
        (Speak(None), "voices should be"),
        (Speak([7]), "voices should be"),
        (Speak(["a.wav"], seed=None), "seed should be a whole number"),
        (Speak(["a.wav"], cfg_coef="2"), "cfg_coef should be a number"),
        (Speak(["a.wav"], audio_sampler=1), "audio_sampler should be a Sampler"),
        (Speak(["a.wav"], padding_between=-1), "padding_between should be a whole number of at least 0"),
        (Speak(["a.wav"], pad_bonus=float("nan")), "pad_bonus should be a number"),
        (Speak(["a.wav"], attributes={}), "attributes should be ConditionAttributes"),
        ("Hello", "an utterance's wishes should be a Speak"),
    ],
)
def test_wishes_of_an_utterance(speech, speak, words):
    with pytest.raises(InputError, match=words):
        list(speech.join(0, speak))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temp": -1}, "temp should be a number of at least 0"),
        ({"temp": "warm"}, "temp should be"),
        ({"cfg_coef": float("nan")}, "cfg_coef should be"),
        ({"n_q": 0}, "n_q should be a whole number of at least 1"),
        ({"padding_bonus": None}, "padding_bonus should be"),
        ({"final_padding": 1.5}, "final_padding should be"),
        ({"max_gen_length": 0}, "max_gen_length should be"),
    ],
)
def test_a_speaking_model(options, words):
    with pytest.raises(InputError, match=words):
        make_tts(**options)


def test_streams_of_speech():
    stt = loaded("tiny-stt")
    for rows in (0, 1.5, "2"):
        with pytest.raises(InputError, match="rows should be"):
            Transcriptions(stt, rows)
        with pytest.raises(InputError, match="batch should be"):
            Listener(stt.lm, stt.mimi, rows)
        with pytest.raises(InputError, match="rows should be"):
            Utterances(make_tts(), rows)
    with pytest.raises(InputError, match="text_sampler should be a Sampler"):
        Listener(stt.lm, stt.mimi, sampler=0.5)
    rows = Transcriptions(stt, 1, compile=False)
    for hear, words in (
        ({"turns": True}, "a stream's wishes should be a Hear"),
        (Hear(seed="1"), "seed should be a whole number"),
        (Hear(turns=True, pause_head="2"), "the pause head should be a whole number"),
        (Hear(turns=True, pause_threshold=None), "the pause threshold should be a number"),
    ):
        with pytest.raises(InputError, match=words):
            list(rows.join(0, hear))


# Generators and the codec ---------------------------------------------------------------------------------------------


def many(codes) -> list:
    """The same as a list, for NumPy and for MLX."""
    array = np.array(codes)
    return [codes, array, mx.array(array), mx.array(array, mx.float32)]


@pytest.mark.parametrize("code", [-2, 25, 100_000, 2_000_000_000, -(2**31)])
def test_codes_beyond_their_table_are_never_looked_up(code):
    """They would be read from wherever in memory that is."""
    generator = LmGen(make_lm(), batch_size=1, compile=False, seed=1)
    good = np.zeros((1, 3), np.int32)
    expected = [generator.step(good).tolist() for _ in range(6)]
    generator.reset()
    got = [generator.step(good).tolist() for _ in range(3)]
    for codes in many([[0, code, 0]]):
        with pytest.raises(InputError, match=r"user codes should be -1 \.\. 24, found"):
            generator.step(codes)
    with pytest.raises(InputError, match="tokens in place of the depth transformer's should be -2"):
        generator.step(good, depformer_replace_tokens=mx.array([[0, code * 2, 0]]))
    assert [*got, *(generator.step(good).tolist() for _ in range(3))] == expected


def test_what_are_no_codes():
    generator = LmGen(make_lm(), batch_size=2, support_out_of_sync=True, compile=False)
    for codes in (
        None,
        "abc",
        [[0.5] * 3] * 2,
        [[np.nan] * 3] * 2,
        [[10**30] * 3] * 2,
        [[0] * 3, [0]],
        np.zeros((2, 3), bool),
    ):
        with pytest.raises(InputError, match="user codes should be whole numbers"):
            generator.step(codes)
    with pytest.raises(InputError, match=r"user codes should have shape \[2, 3\], found \[2, 2\]"):
        generator.step(np.zeros((2, 2), int))
    with pytest.raises(InputError, match=r"depth transformer's should be \[2, 3\], found \[2, 2\]"):
        generator.step(np.zeros((2, 3), int), depformer_replace_tokens=np.zeros((2, 2), int))
    for rows in ([True], [True, False, True], "ab", 5, [2, 3], [[True, False]]):
        with pytest.raises(InputError, match="execute should be True or False for each of 2 rows"):
            generator.step(np.zeros((2, 3), int), execute=rows)
        with pytest.raises(InputError, match="rows should be True or False for each of 2 rows"):
            generator.reset(rows)


def test_the_codecs_own_stream():
    mimi = Mimi(make_mimi().cfg)
    sound = np.zeros((1, 1, 1920), np.float32)
    codes = mimi.encode_step(sound)
    for bad, words in (
        (np.zeros((2, 1, 1920), np.float32), "this stream has 1 rows, found 2"),
        (sound[:, :, :1900], "a positive multiple of 1920"),
        (None, "sound should be"),
        (0.5, "audio should have shape"),
    ):
        with pytest.raises(InputError, match=words):
            mimi.encode_step(bad)
    assert mimi.encode_step(sound).shape == codes.shape
    assert mimi.decode_step(codes).shape == (1, 1, 1920)
    for bad in many(np.array(codes) + 24) + many(np.array(codes) - 24) + [np.array(codes) + 0.5, None, "a"]:
        for decode in (mimi.decode_step, mimi.decode):
            with pytest.raises(InputError, match=r"codes should be (0 \.\. 23|whole numbers), found"):
                decode(bad)
    assert mimi.decode_step(codes).shape == (1, 1, 1920)
