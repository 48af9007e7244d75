"""Generation: clocks, seeds, batches, hooks, guidance checks, states that are values."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from toy import make_lm

from moshi_mlx.engine.generate import LmGen
from moshi_mlx.errors import InputError
from moshi_mlx.modules.sampling import Sampler

GREEDY = Sampler(temp=0)


@pytest.fixture(scope="module")
def lm():
    return make_lm()


def user(t: int, batch: int = 1, n: int = 3) -> np.ndarray:
    return np.random.default_rng(t).integers(0, 24, (batch, n))


def talk(gen: LmGen, steps: int, start: int = 0, rows=None) -> np.ndarray:
    """Frames `[steps, B, 1 + dep_q]`; every row hears what row `rows[b]` of a larger batch would."""
    frames = []
    for t in range(start, start + steps):
        heard = user(t, 4)[rows if rows is not None else slice(0, gen.batch_size)]
        gen.step(heard)
        frames.append(np.array(gen.frame))
    return np.stack(frames)


def test_sampling_repeats_with_the_seed(lm):
    runs = [talk(LmGen(lm, seed=s), 20) for s in (7, 7, 8)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_seed_follows_mlx_random(lm):
    runs = []
    for seed in (1, 1, 2):
        mx.random.seed(seed)
        runs.append(talk(LmGen(lm), 15))
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("out_of_sync", [False, True], ids=["lockstep", "own-clocks"])
def test_rows_of_a_batch_are_independent(lm, out_of_sync):
    batch = LmGen(lm, batch_size=4, seed=[3, 5, 8, 5], support_out_of_sync=out_of_sync)
    together = talk(batch, 30)
    for row, seed in enumerate([3, 5, 8, 5]):
        alone = talk(LmGen(lm, seed=seed), 30, rows=[row])
        assert (together[:, row : row + 1] == alone).all()


def test_rows_pause_and_start_over(lm):
    rng = np.random.default_rng(0)
    gen = LmGen(lm, batch_size=3, seed=[1, 2, 3], support_out_of_sync=True)
    heard: list[list] = [[[]], [[]], [[]]]
    got: list[list] = [[[]], [[]], [[]]]
    for t in range(60):
        if t == 25:
            gen.reset([False, True, False])
            heard[1].append([])
            got[1].append([])
        execute = rng.random(3) < 0.6
        codes = user(t, 3)
        gen.step(codes, execute=execute)
        frame = np.array(gen.frame)
        for b in range(3):
            if execute[b]:
                heard[b][-1].append(codes[b])
                got[b][-1].append(frame[b])
            else:
                assert (frame[b] == -2).all()
    for b in range(3):
        for codes, frames in zip(heard[b], got[b], strict=True):
            alone = LmGen(lm, seed=[1, 2, 3][b])
            for c, f in zip(codes, frames, strict=True):
                alone.step(c[None])
                assert (np.array(alone.frame)[0] == f).all()


def test_state_is_a_value(lm):
    gen = LmGen(lm, seed=4)
    talk(gen, 15)
    saved = gen.state
    first = talk(gen, 15, start=15)
    gen.state = saved
    assert (talk(gen, 15, start=15) == first).all()
    other = LmGen(lm, seed=99)
    other.state = saved
    assert (talk(other, 15, start=15) == first).all()


def test_state_survives_a_file(lm, tmp_path):
    from mlx.utils import tree_flatten, tree_unflatten

    gen = LmGen(lm, seed=4)
    talk(gen, 20)
    mx.save_safetensors(str(tmp_path / "state.safetensors"), dict(tree_flatten(gen.state)))
    expected = talk(gen, 10, start=20)
    loaded = LmGen(lm, seed=0)
    loaded.state = tree_unflatten(list(mx.load(str(tmp_path / "state.safetensors")).items()))
    assert (talk(loaded, 10, start=20) == expected).all()


def test_there_is_no_step_limit(lm):
    gen = LmGen(lm, max_steps=5, text_sampler=GREEDY, audio_sampler=GREEDY)
    assert talk(gen, 600).shape[0] == 600


@pytest.mark.cpu_only("a GPU's rings are as large as the window from the start")
def test_long_talk_grows_its_rings_up_to_the_window():
    lm = make_lm(context=600)
    gen = LmGen(lm, seed=0)
    sizes = []
    for t in range(700):
        gen.step(user(t))
        sizes.append(gen.state["trunk"]["layers"][0].shape[3])
    assert sorted(set(sizes)) == [256, 512, 600]
    assert sizes[255] == 256
    assert sizes[256] == 512


def test_first_frames_are_withheld(lm):
    gen = LmGen(lm, seed=0)
    assert not gen.has_frame
    gen.step(user(0))
    assert gen.last_audio_tokens() is None
    assert (np.array(gen.frame) == -2).all()
    gen.step(user(1))
    audio = gen.last_audio_tokens()
    assert audio is not None
    assert audio.shape == (1, 3)
    assert (np.array(audio) >= 0).all()


def test_the_user_frame_given_to_a_step_is_used_by_it(lm):
    """No frame of extra latency: changing the codes of step 9 changes the logits of step 9."""
    logits = []
    for change in (0, 1):
        gen = LmGen(lm, text_sampler=GREEDY, audio_sampler=GREEDY)
        for t in range(10):
            codes = user(t)
            codes[:, 0] = (codes[:, 0] + (change if t == 9 else 0)) % 24
            gen.step(codes)
        logits.append(np.array(gen.output.text_logits))
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_leaving_out_codebooks_changes_nothing_else():
    """Fewer depth steps, the caller giving the rest: what is generated is the same, sampled or not."""
    lm = make_lm(dep_q=6, n_q=6, delays=[0] * 7)
    full, part = LmGen(lm, seed=2), LmGen(lm, seed=2, generated_codebooks=3)
    given = []
    for _ in range(12):
        full.step(np.zeros((1, 0), int))
        forced = np.array(full.output.audio)[:, 3:]
        given.append(forced)
    full.reset()
    # The model reads its own last tokens; the shorter one is given them.
    for t in range(12):
        before = given[t - 1] if t else np.zeros((1, 3), int)
        full.step(np.zeros((1, 0), int))
        part.step(before)
        assert (np.array(full.output.text) == np.array(part.output.text)).all()
        assert (np.array(full.output.audio)[:, :3] == np.array(part.output.audio)).all()


@pytest.mark.parametrize(
    ("batch_size", "text_shape", "audio_shape"), [(None, (1,), (3,)), (1, (1, 1), (1, 3, 1)), (2, (2, 1), (2, 3, 1))]
)
def test_hooks_see_published_shapes_and_may_change_tokens(lm, batch_size, text_shape, audio_shape):
    seen = []

    def on_text(tokens):
        seen.append(tuple(tokens.shape))
        tokens[:] = mx.array(5)

    def on_audio(tokens):
        seen.append(tuple(tokens.shape))
        tokens[:] = mx.array(7)

    gen = LmGen(lm, 10, Sampler(), Sampler(), batch_size=batch_size, on_text_hook=on_text, on_audio_hook=on_audio)
    for t in range(4):
        text = gen.step(user(t, batch_size or 1))
    assert seen[:2] == [text_shape, audio_shape]
    assert (np.array(text) == 5).all()
    assert (np.array(gen.frame)[:, 0] == 5).all()
    assert (np.array(gen.frame)[:, 1:] == 7).all()


def test_published_input_shapes(lm):
    for codes in (
        mx.zeros((1, 3), mx.int64),
        mx.zeros((1, 3, 1), mx.int32),
        mx.zeros((1, 8), mx.uint32),
        np.zeros((1, 3)),
    ):
        text = LmGen(lm, seed=0).step(codes)
        assert text.shape == (1, 1)
        assert isinstance(text[0].item(), int)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lm: LmGen(lm).step(np.zeros((1, 2), int)), r"shape \[1, 3\]"),
        (lambda lm: LmGen(lm, batch_size=2).step(np.zeros((1, 3), int)), r"shape \[2, 3\]"),
        (lambda lm: LmGen(lm).step(np.full((1, 3), 99)), "-1 .. 24"),
        (lambda lm: LmGen(lm).step(np.full((1, 3), -2)), "-1 .. 24"),
        (lambda lm: LmGen(lm).reset([True]), "support_out_of_sync"),
        (lambda lm: LmGen(lm).step(user(0), execute=[True]), "support_out_of_sync"),
        (lambda lm: LmGen(lm, batch_size=2, seed=[1]), "as many seeds"),
        (lambda lm: LmGen(lm, generated_codebooks=9), "up to 3 codebooks"),
        (
            lambda lm: LmGen(lm, cfg_coef=2.0).step(user(0)),
            "needs conditions for 2 rows.*This model has no conditions: leave guidance out",
        ),
        (lambda lm: LmGen(lm).frame, "no step yet"),
    ],
)
def test_refusals(lm, make, message):
    with pytest.raises(InputError, match=message):
        make(lm)


def test_extra_heads():
    lm = make_lm(dep_q=0, n_q=3, delays=[0] * 4, extra_heads_num_heads=4)
    gen = LmGen(lm, text_sampler=GREEDY)
    text, heads = gen.step_with_extra_heads(user(0))
    assert [h.shape for h in heads] == [(1, 1, 6)] * 4
    assert float(heads[2][0, 0].sum()) == pytest.approx(1, abs=1e-5)
    assert gen.last_audio_tokens() is None
    assert text.shape == (1, 1)


def test_warmup_leaves_no_trace(lm):
    before = talk(LmGen(lm, seed=1), 5)
    lm.warmup()
    assert (talk(LmGen(lm, seed=1), 5) == before).all()
