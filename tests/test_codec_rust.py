"""The Rust codec behind the session's interface: the same conversation, of any length."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import soundfile

from moshi_mlx import checkpoint, local
from moshi_mlx.errors import InputError, MoshiError
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session, codec_rust
from moshi_mlx.session.codec_rust import WINDOW_FRAMES, RustMimi, RustSession

FRAME = 1920


class FakeTokenizer:
    """Codes tell how many frames this instance has heard; past its table it fails, as the library does."""

    made: list[FakeTokenizer] = []

    def __init__(self, path, *, num_codebooks, max_seq_len):
        self.codebooks, self.last = num_codebooks, max_seq_len // 2
        self.encoded = self.decoded = 0
        FakeTokenizer.made.append(self)

    def encode_step(self, pcm):
        assert (pcm.dtype, pcm.shape, pcm.flags.c_contiguous) == (np.float32, (1, 1, FRAME), True)
        self.encoded += 1
        if self.encoded > self.last:
            raise ValueError("narrow invalid args")
        return np.full((1, self.codebooks, 1), self.encoded, np.uint32)

    def decode_step(self, codes):
        assert (codes.dtype, codes.flags.c_contiguous) == (np.uint32, True)
        self.decoded += 1
        if self.decoded > self.last:
            raise ValueError("narrow invalid args")
        return np.full((1, 1, FRAME), self.decoded, np.float32)


@pytest.fixture
def fake(monkeypatch):
    FakeTokenizer.made = []
    monkeypatch.setitem(sys.modules, "rustymimi", types.SimpleNamespace(Tokenizer=FakeTokenizer, __spec__=object()))
    monkeypatch.setattr(codec_rust.importlib.util, "find_spec", lambda name: object())


def test_no_end_of_the_table_is_ever_reached(fake):
    """Whoever takes over has heard the window before: its count never falls below it."""
    codec = RustMimi("codec", 8, positions=2 * 300)
    pcm, heard, said = np.zeros(FRAME, np.float32), [], []
    for i in range(2000):
        heard.append(int(codec.encode(pcm)[0]))
        if i:
            said.append(int(codec.decode(np.zeros(8, np.int32))[0]))
    # A new one every 175 frames, and no more.
    assert len(FakeTokenizer.made) == 1 + (2000 - 1) // 175
    assert heard[:300] == list(range(1, 301))
    assert heard[300] == WINDOW_FRAMES + 1
    assert min(heard[300:]) == WINDOW_FRAMES + 1
    assert max(heard) == 300
    # Replies begin a frame later and hand over at the same moment.
    assert min(said[300:]) >= WINDOW_FRAMES
    assert max(said) <= 300


def test_arrays_reach_the_library_in_one_piece(fake):
    """It refuses all others."""
    codec = RustMimi("codec", 8)
    codec.encode(np.zeros((2, 3 * FRAME), np.float64)[1, ::3])
    codec.decode(np.zeros((8, 4), np.int64)[:, 1])
    codec.decode(np.asfortranarray(np.zeros((8, 8), np.int32))[2])


def test_reset_begins_anew(fake):
    codec = RustMimi("codec", 8, positions=2 * 300)
    pcm = np.zeros(FRAME, np.float32)
    for _ in range(250):
        codec.encode(pcm)
    codec.reset()
    assert [int(codec.encode(pcm)[0]) for _ in range(302)] == [*range(1, 301), WINDOW_FRAMES + 1, WINDOW_FRAMES + 2]


def test_a_table_too_small_for_the_window(fake):
    with pytest.raises(InputError, match="more than 250 positions"):
        RustMimi("codec", 8, positions=250)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(codec_rust.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install rustymimi, or use --codec mlx"):
        RustMimi("codec", 8)


def test_a_codec_of_another_kind_is_refused(tiny_checkpoint):
    loaded = checkpoint.load(tiny_checkpoint, with_codec=False)
    with pytest.raises(MoshiError, match="has one of its own. Use --codec mlx"):
        RustSession(loaded)


def test_sampling_is_that_of_the_other_codec(fake, tiny_checkpoint):
    """Also where a checkpoint says that every token may be drawn."""
    loaded = checkpoint.load(tiny_checkpoint)
    loaded.config.generation.top_k = loaded.config.generation.top_k_text = 0
    usual = Session(loaded)
    # As if its codec were the published one.
    loaded.files.mimi_config = None
    step = RustSession(loaded)._gen._step
    assert (step.text_sampler, step.audio_sampler) == (usual._step.text_sampler, usual._step.audio_sampler)


# With the library ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published_codec(tmp_path_factory):
    """A small language model with a codec of the published shape (385 MB)."""
    pytest.importorskip("rustymimi")
    from random_checkpoint import write

    folder = tmp_path_factory.mktemp("published-codec")
    write(folder, "tiny-published-codec", None, seed=1)
    return folder


@pytest.mark.slow
def test_the_same_tokens_as_with_the_mlx_codec(published_codec, question):
    greedy = {"text_sampler": Sampler(temp=0), "audio_sampler": Sampler(temp=0)}
    speech, _ = soundfile.read(question, dtype="float32")
    mlx = Session(checkpoint.load(published_codec), **greedy)
    rust = RustSession(checkpoint.load(published_codec, with_codec=False), **greedy)
    for _ in range(2):
        for i in range(30):
            pcm = speech[24000 + i * FRAME :][:FRAME]
            a, b = mlx.step(pcm), rust.step(pcm)
            assert (a.index, a.text, a.text_token, a.time) == (b.index, b.text, b.text_token, b.time)
            assert (a.codes == b.codes).all()
            np.testing.assert_allclose(a.pcm, b.pcm, atol=2e-3)
        mlx.reset()
        rust.reset()
    with pytest.raises(InputError, match="a step takes 1920 samples"):
        rust.step(np.zeros(100, np.float32))


@pytest.mark.slow
def test_handing_over_is_not_heard(published_codec):
    """A codec that relays every 175 frames beside one that never has to."""
    path = next(published_codec.glob("tokenizer-*.safetensors"))
    relayed, whole = RustMimi(path, 8, positions=2 * 300), RustMimi(path, 8)
    rng = np.random.default_rng(0)
    same, errors = [], []
    for _i in range(340):
        pcm = (0.1 * rng.standard_normal(FRAME)).astype(np.float32)
        a, b = relayed.encode(pcm), whole.encode(pcm)
        same.append((a == b).mean())
        x, y = relayed.decode(b), whole.decode(b)
        errors.append(np.abs(x - y).max() / np.abs(y).max())
    assert same[:300] == [1.0] * 300
    assert max(errors[:300]) == 0
    # With random weights a window back is not everything that is remembered; what matters most is the same.
    print(f"codes the same {np.mean(same[300:]):.3f}, sound differs by {max(errors[300:]):.4f}")
    assert np.mean(same[300:]) > 0.85
    assert max(errors[300:]) < 0.05


@pytest.mark.slow
def test_the_command_with_the_rust_codec(published_codec, question, tmp_path):
    code = local.main(
        [
            "--input",
            str(question),
            "--output",
            str(tmp_path / "o.wav"),
            "--fast",
            "--codec",
            "rust",
            "--steps",
            "20",
            "--model",
            str(published_codec),
            "--no-compile",
        ]
    )
    assert code == 0
    reply, _ = soundfile.read(tmp_path / "o.wav")
    assert len(reply) == 20 * FRAME
    assert np.abs(reply).max() > 0
