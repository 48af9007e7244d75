"""The embedding API: one frame in, one frame out; conversations are values."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx import checkpoint
from moshi_mlx.errors import InputError
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Frame, Session


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint, dtype=mx.float32)


def sound(t: int, rows: int = 1) -> np.ndarray:
    return 0.2 * np.random.default_rng(t).standard_normal((rows, 1920)).astype(np.float32)


def talk(session: Session, steps: int, start: int = 0) -> list[Frame]:
    return [session.step(sound(t)[0]) for t in range(start, start + steps)]


def same(a: list[Frame], b: list[Frame]) -> bool:
    return all(
        (x.pcm == y.pcm).all() and (x.codes == y.codes).all() and x.text_token == y.text_token
        for x, y in zip(a, b, strict=True)
    )


def test_frames(loaded):
    session = Session(loaded, compile=False)
    frames = talk(session, 10)
    assert [f.index for f in frames] == list(range(10))
    assert frames[5].time == pytest.approx(0.4)
    assert all(f.pcm.shape == (1920,) and f.pcm.dtype == np.float32 for f in frames)
    assert all(f.codes.shape == (8,) and (f.codes >= 0).all() and (f.codes < 256).all() for f in frames)
    assert session.frames == 10
    assert any(f.text for f in frames)
    assert all(np.isfinite(f.pcm).all() for f in frames)


def test_the_first_frame_is_heard(loaded):
    """No frame of latency at the start either: the very first 80 ms change what comes."""
    replies = []
    for seed in (0, 1):
        session = Session(loaded, text_sampler=Sampler(temp=0), audio_sampler=Sampler(temp=0), compile=False)
        session.step(sound(seed)[0])
        replies.append(np.array(session.state["lm"]["trunk"]["layers"][1][:, :, :, 1]))
    assert np.abs(replies[0] - replies[1]).max() > 0


def test_compiled_and_plain_agree(loaded):
    plain, fast = Session(loaded, seed=3, compile=False), Session(loaded, seed=3)
    for a, b in zip(talk(plain, 25), talk(fast, 25), strict=True):
        assert a.text_token == b.text_token
        assert (a.codes == b.codes).all()
        np.testing.assert_allclose(a.pcm, b.pcm, atol=1e-4)


def test_rows_of_a_batch(loaded):
    together = Session(loaded, batch=3, seed=[5, 6, 7], compile=False)
    frames = [together.step(np.concatenate([sound(3 * t + b) for b in range(3)])) for t in range(15)]
    for row, seed in enumerate((5, 6, 7)):
        alone = Session(loaded, seed=seed, compile=False)
        for t in range(15):
            expected = alone.step(sound(3 * t + row)[0])
            assert (frames[t][row].codes == expected.codes).all()
            assert frames[t][row].text_token == expected.text_token


def test_fork_and_restore_continue_identically(loaded):
    session = Session(loaded, seed=1, compile=False)
    talk(session, 20)
    saved = session.state
    first = talk(session, 10, start=20)
    session.state = saved
    assert same(talk(session, 10, start=20), first)
    other = Session(loaded, seed=99, compile=False)
    other.state = saved
    assert same(talk(other, 10, start=20), first)
    assert first[0].index == 20


def test_reset_begins_again(loaded):
    session = Session(loaded, seed=1, compile=False)
    first = talk(session, 10)
    session.reset()
    assert same(talk(session, 10), first)
    session.reset(seed=2)
    assert not same(talk(session, 10), first)


def test_memory_of_a_long_talk_is_flat(tiny_checkpoint):
    session = Session(checkpoint.load(tiny_checkpoint, context=25), compile=False)
    talk(session, 60)
    mx.clear_cache()
    before = mx.get_active_memory()
    talk(session, 120, start=60)
    mx.clear_cache()
    assert mx.get_active_memory() <= before + 100_000


def test_refusals(loaded):
    session = Session(loaded, compile=False)
    with pytest.raises(InputError, match="takes 1920 samples"):
        session.step(np.zeros(1000, np.float32))
    with pytest.raises(InputError, match="1 conversations"):
        session.step(np.zeros((2, 1920), np.float32))
    with pytest.raises(InputError, match="as many seeds"):
        Session(loaded, batch=2, seed=[1])
