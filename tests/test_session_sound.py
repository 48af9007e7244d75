"""Sound that is no sound never reaches a model, through no door; whole numbers are scaled by their type."""

from __future__ import annotations

import queue
import sys
import types

import mlx.core as mx
import numpy as np
import pytest
from toy import randomise

from moshi_mlx import checkpoint
from moshi_mlx.audio.capture import Capture
from moshi_mlx.audio.samples import as_samples, refuse_nonsense, usable
from moshi_mlx.errors import InputError
from moshi_mlx.models.mimi import Mimi
from moshi_mlx.session import Session, codec_rust
from moshi_mlx.session.codec_rust import RustSession
from moshi_mlx.session.conversations import Conversations, Talk
from moshi_mlx.speech_to_text.listener import Listener

SINE = 0.3 * np.sin(np.arange(1920) / 20)
# None of it is sound: (what, the sentence).
NONSENSE = {
    "NaN": (np.where(np.arange(1920) == 7, np.nan, SINE).astype(np.float32), "found NaN or infinity"),
    "infinity": (np.where(np.arange(1920) == 7, -np.inf, SINE).astype(np.float32), "found NaN or infinity"),
    "1e38": (np.where(np.arange(1920) == 7, 1e38, SINE).astype(np.float32), "found 1e.38"),
    "whole numbers made floats": ((SINE * 32767).astype(np.float32), "hand them over as int16"),
    "beyond float32": (SINE * 1e300, "found NaN or infinity"),
    "int64": ((SINE * 32767).astype(np.int64), "found the type int64"),
    "uint16": (np.zeros(1920, np.uint16), "found the type uint16"),
    "bool": (SINE > 0, "found the type bool"),
    "complex": (SINE * 1j, "found the type complex128"),
    "texts": (["a"] * 1920, "found the type <U"),
    "objects": ([None] * 1920, "found the type object"),
    "ragged": ([[0.0], [0.0, 1.0]], "sound should be"),
    "too short": (SINE[:1919], "1919|whole frames of 1920|multiple of 1920|should be an array"),
    "too long": (np.zeros(1921), "1921|whole frames of 1920|multiple of 1920|should be an array"),
    "none at all": (SINE[:0], r"\b0\b|whole frames of 1920|multiple of 1920|should be an array"),
}
DOORS = ["session", "batch", "rust", "listener", "row", "row of listeners", "codec"]


class SilentCodec:
    """Stands for rustymimi's."""

    def __init__(self, *_, num_codebooks, max_seq_len):
        self.codebooks = num_codebooks

    def encode_step(self, pcm):
        assert np.isfinite(pcm).all()
        return np.full((1, self.codebooks, 1), int(100 * np.abs(pcm).max()), np.uint32)

    def decode_step(self, codes):
        return np.zeros((1, 1, 1920), np.float32)


@pytest.fixture(scope="module")
def doors(tiny_checkpoint, tmp_path_factory):
    """By name: a function of one frame of sound, whose answer tells what was heard so far, and one that begins again."""
    from random_checkpoint import write

    loaded = checkpoint.load(tiny_checkpoint)
    single, double = Session(loaded, compile=False), Session(loaded, batch=2, seed=[0, 1], compile=False)
    folder = tmp_path_factory.mktemp("stt")
    write(folder, "tiny-stt", None, seed=1)
    stt = checkpoint.load(folder)
    listener = Listener(stt.lm, stt.mimi, compile=False)
    listeners = Listener(stt.lm, stt.mimi, 2, compile=False)
    rows = Conversations(loaded, 2, compile=False)
    codec = randomise(Mimi(loaded.mimi.cfg), 0)

    def both(x):
        """Beside a row of sound; where an array can hold both, in one of the type of `x`."""
        other = SINE if isinstance(x, list) or len(x) != len(SINE) else SINE.astype(x.dtype)
        return np.stack([other, x]) if not isinstance(x, list) and len(x) == len(SINE) else [other, x]

    def begin() -> None:
        for row in range(2):
            list(rows.join(row, Talk(seed=row)))

    def hear(x) -> list:
        heard = listeners.listen_some({0: SINE, 1: x})
        return heard.tokens.tolist()

    def begin_hearing() -> None:
        listeners.reset()
        listeners.start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "rustymimi", types.SimpleNamespace(Tokenizer=SilentCodec, __spec__=object()))
        patch.setattr(codec_rust.importlib.util, "find_spec", lambda name: object())
        loaded = checkpoint.load(tiny_checkpoint, with_codec=False)
        # As if its codec were the published one.
        loaded.files.mimi_config = None
        rust = RustSession(loaded, compile=False)
        yield {
            "session": (lambda x: single.step(x).codes.tolist(), single.reset),
            "batch": (lambda x: [f.codes.tolist() for f in double.step(both(x))], double.reset),
            "rust": (lambda x: rust.step(x).codes.tolist(), rust.reset),
            "listener": (lambda x: listener.listen([x]).tokens.tolist(), listener.reset),
            "row": (lambda x: [o.items[0].codes.tolist() for o in rows.step({0: (SINE, False), 1: (x, False)}).values()], begin),
            "row of listeners": (hear, begin_hearing),
            "codec": (lambda x: codec.encode_step([[x]]).tolist(), codec.reset_all),
        }  # fmt: skip


@pytest.mark.parametrize("what", NONSENSE)
@pytest.mark.parametrize("door", DOORS)
def test_nonsense_is_refused_and_nothing_changes(doors, door, what):
    step, reset = doors[door]
    sound, words = NONSENSE[what]
    reset()
    expected = [step(SINE) for _ in range(4)]
    reset()
    got = [step(SINE)]
    with pytest.raises(InputError, match=words):
        step(sound)
    assert [*got, *(step(SINE) for _ in range(3))] == expected


def test_whole_numbers_are_scaled_by_their_type(doors):
    step, reset = doors["session"]
    exact = np.round(SINE * 128) / 128
    for whole in (exact * 32768, exact * 2**31, exact * 128):
        dtype = {32768: np.int16, 2**31: np.int32, 128: np.int8}[round(np.abs(whole).max() / np.abs(exact).max())]
        assert (as_samples(whole.astype(dtype)) == exact.astype(np.float32)).all()
    assert (as_samples((exact * 128 + 128).astype(np.uint8)) == exact.astype(np.float32)).all()
    assert (as_samples(mx.array(exact, mx.bfloat16)) == exact.astype(np.float32)).all()
    said = []
    for sound in (
        exact.astype(np.float32),
        (exact * 32768).astype(np.int16),
        exact,
        exact.tolist(),
        mx.array(exact, mx.float32),
    ):
        reset()
        said.append([step(sound) for _ in range(3)])
    assert all(s == said[0] for s in said)


def test_sound_in_any_order_of_memory(doors):
    step, reset = doors["session"]
    wide = np.zeros((1920, 3))
    wide[:, 1] = SINE
    said = []
    for sound in (
        SINE.astype(np.float32),
        SINE[::-1].astype(np.float32)[::-1],
        wide[:, 1],
        wide.astype(np.float32)[:, 1],
        SINE.astype(">f8"),
    ):
        reset()
        said.append([step(sound) for _ in range(3)])
    assert all(s == said[0] for s in said)


def test_any_float_is_sound():
    for dtype in (np.float16, np.float64, ">f4", np.longdouble):
        assert as_samples(np.ones(3, dtype)).dtype == np.float32
        assert as_samples(np.ones(3, dtype)).tolist() == [1, 1, 1]
    # A little above full scale is a loud recording.
    assert refuse_nonsense(np.array([1.5, -2], np.float32)).tolist() == [1.5, -2]
    assert refuse_nonsense(np.zeros(0, np.float32)).size == 0


@pytest.mark.parametrize("sound", [object(), None, "sound", {"a": 1}, [[0.0], [0.0, 1.0]]])
def test_what_is_no_array(sound):
    with pytest.raises(InputError, match="sound should be"):
        as_samples(sound)


def test_devices_deliver_what_is_no_number(doors):
    """As a live loop takes it: silence, and counted."""
    bad = np.array([0.5, np.nan, -np.inf, 3.0, -0.25], np.float32)
    sound, invalid = usable(bad)
    assert (sound.tolist(), invalid) == ([0.5, 0, 0, 1, -0.25], 2)
    capture = Capture(24000)
    capture.feed(np.resize(bad, 1920))
    frame = capture.read(1)
    assert np.isfinite(frame).all() and np.abs(frame).max() <= 1
    assert capture.invalid == 768


def test_fed_sound(tiny_checkpoint):
    replies: queue.Queue = queue.Queue()
    with Session.spawn(tiny_checkpoint, on_frame=lambda f: replies.put(f.codes.tolist()), compile=False) as thread:

        def say(sound) -> list:
            thread.call(lambda s: s.reset()).result(60)
            for _ in range(3):
                thread.feed(sound)
            return [replies.get(timeout=60) for _ in range(3)]

        quiet = np.where(np.arange(1920) < 20, 0, np.round(SINE * 100) / 128).astype(np.float32)
        expected = say(quiet)
        assert say((quiet * 32768).astype(np.int16)) == expected
        assert thread.invalid == 0
        assert say(np.where(np.arange(1920) < 20, np.nan, quiet).astype(np.float32)) == expected
        assert thread.invalid == 60
        for what in ("1e38", "whole numbers made floats", "int64", "bool"):
            sound, words = NONSENSE[what]
            with pytest.raises(InputError, match=words):
                thread.feed(sound)
        assert say(quiet) == expected
