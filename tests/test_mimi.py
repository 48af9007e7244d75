"""Properties of the codec: chunking, prefixes, constant state, refusals."""

from __future__ import annotations

from pathlib import Path

import golden_mimi
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten
from toy import make_mimi

from moshi_mlx.errors import ConfigError, InputError
from moshi_mlx.models.mimi import Mimi, mimi_202407

FRAME = 1920
GOLDENS = Path(__file__).parent / "goldens" / "mimi"


def sound(frames: int, batch: int = 1, seed: int = 0) -> mx.array:
    return mx.array(0.3 * np.random.default_rng(seed).standard_normal((batch, 1, frames * FRAME)).astype(np.float32))


@pytest.fixture(scope="module")
def mimi():
    return make_mimi()


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_any_chunking(sizes):
    mimi, pcm, total = make_mimi(), sound(24), 24
    codes = mimi.encode(pcm)
    audio = mimi.decode(codes)
    encoder, decoder, got, heard, at, i = mimi.init_encoder(), mimi.init_decoder(), [], [], 0, 0
    while at < total:
        n = min(sizes[i % len(sizes)], total - at)
        c, encoder = mimi.encode_chunk(pcm[:, :, at * FRAME : (at + n) * FRAME], encoder)
        p, decoder = mimi.decode_chunk(codes[:, :, at : at + n], decoder)
        got.append(np.array(c))
        heard.append(np.array(p))
        at, i = at + n, i + 1
    assert (np.concatenate(got, axis=2) == np.array(codes)).mean() > 0.995
    np.testing.assert_allclose(np.concatenate(heard, axis=2), np.array(audio), atol=1e-4)


OTHER_SHAPES = [
    pytest.param({"n_residual_layers": 2, "dilation_base": 3}, id="dilated"),
    pytest.param({"ratios": [4, 4], "n_filters": 4}, id="two-ratios"),
    pytest.param({"true_skip": False, "compress": 1}, id="shortcut"),
    pytest.param({"pad_mode": "replicate", "kernel_size": 5, "last_kernel_size": 5}, id="replicate"),
]


@pytest.mark.parametrize("seanet", OTHER_SHAPES)
def test_other_configurations_stream_too(seanet):
    from toy import MIMI

    changes = {"seanet": {**MIMI["seanet"], **seanet}}
    if "ratios" in seanet:
        changes |= {"sample_rate": 800, "frame_rate": 12.5}
        changes["sample_rate"] = 16 * 2 * 25 // 2
        changes["frame_rate"] = changes["sample_rate"] / 32
    mimi = make_mimi(**changes)
    size = mimi.frame_size
    pcm = mx.array(np.random.default_rng(0).standard_normal((1, 1, 12 * size)).astype(np.float32))
    codes = mimi.encode(pcm)
    state, got = mimi.init_encoder(), []
    for t in range(12):
        c, state = mimi.encode_chunk(pcm[:, :, t * size : (t + 1) * size], state)
        got.append(np.array(c))
    assert (np.concatenate(got, axis=2) == np.array(codes)).mean() > 0.99
    assert mimi.decode(codes).shape == pcm.shape


def test_fewer_codebooks_are_a_prefix(mimi):
    pcm = sound(5)
    every = np.array(mimi.encode(pcm))
    for k in (1, 2, 3):
        assert (np.array(mimi.encode(pcm, k)) == every[:, :k]).all()
        assert mimi.decode(mx.array(every[:, :k])).shape == (1, 1, 5 * FRAME)


def test_state_has_a_fixed_size(mimi):
    encoder, decoder = mimi.init_encoder(), mimi.init_decoder()
    before = [a.nbytes for _, a in tree_flatten((encoder, decoder))]
    for t in range(30):
        codes, encoder = mimi.encode_chunk(sound(1, seed=t), encoder)
        pcm, decoder = mimi.decode_chunk(codes, decoder)
        mx.eval(pcm, encoder, decoder)
    assert [a.nbytes for _, a in tree_flatten((encoder, decoder))] == before


def test_the_ends_are_padded_with_silence(mimi):
    pcm = sound(3)[:, :, : 2 * FRAME + 5]
    padded = mx.pad(pcm, [(0, 0), (0, 0), (0, FRAME - 5)])
    assert (np.array(mimi.encode(pcm)) == np.array(mimi.encode(padded))).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode_chunk(mx.zeros((1, 1, 1000)), m.init_encoder()), "multiple of 1920"),
        (lambda m: m.encode_chunk(mx.zeros((1, 1920)), m.init_encoder()), "shape"),
        (lambda m: m.encode(mx.zeros((1, 1, 0))), "above 0"),
        (lambda m: m.encode(mx.zeros((1, 1, 1920)), 9), "9 were asked for"),
        (lambda m: m.decode(mx.zeros((1, 9, 2), mx.int32)), "shape"),
        (lambda m: m.decode(mx.zeros((1, 2, 0), mx.int32)), "shape"),
    ],
)
def test_refusals(mimi, call, message):
    with pytest.raises(InputError, match=message):
        call(mimi)


def test_published_object_keeps_one_stream():
    """`encode_step` and `decode_step` go on where they were; whole recordings do not disturb them."""
    from toy import MIMI, randomise

    from moshi_mlx.config import MimiConfig

    mimi = randomise(Mimi(MimiConfig.from_dict(MIMI)), 0)
    pcm = sound(6)
    codes = mimi.encode(pcm)
    got = []
    for t in range(6):
        got.append(np.array(mimi.encode_step(pcm[:, :, t * FRAME : (t + 1) * FRAME])))
        mimi.encode(pcm)
    assert (np.concatenate(got, axis=2) == np.array(codes)).mean() > 0.99
    mimi.reset_all()
    again = np.array(mimi.encode_step(pcm[:, :, :FRAME]))
    assert (again == got[0]).all()
    assert mimi.decode_step(codes[:, :, :1]).shape == (1, 1, FRAME)


def test_config_contradictions_are_named():
    from toy import MIMI

    with pytest.raises(ConfigError, match="d_model"):
        make_mimi(transformer={**MIMI["transformer"], "d_model": 32})
    with pytest.raises(ConfigError, match="whole number"):
        make_mimi(frame_rate=13.0)
    with pytest.raises(ConfigError, match="'frame_rate' should be at least 1"):
        make_mimi(frame_rate=0)
    with pytest.raises(ConfigError, match="'ratioss'.*Did you mean 'ratios'"):
        make_mimi(seanet={**MIMI["seanet"], "ratioss": [2]})


def test_published_configuration_shape():
    cfg = mimi_202407(8)
    assert (cfg.num_codebooks, cfg.frame_size, cfg.stride, cfg.sample_rate) == (8, FRAME, 2, 24000)


@pytest.mark.slow
def test_agrees_with_rustymimi(tmp_path):
    """The CPU codec on the same full-size weights, frame by frame, inside its window."""
    rustymimi = pytest.importorskip("rustymimi")
    from moshi_mlx.checkpoint import load_mimi_file

    weights = golden_mimi.seeded_weights(GOLDENS, 1, tmp_path / "mimi.safetensors")
    pcm = golden_mimi.read(GOLDENS / "full_seed1" / "io.safetensors")["short.pcm"].reshape(1, 1, -1)[:, :, : 40 * FRAME]
    rust = rustymimi.Tokenizer(str(weights), num_codebooks=8)
    mimi = Mimi(mimi_202407(8))
    load_mimi_file(mimi, weights)
    # It takes arrays that lie in one piece only.
    whole = np.ascontiguousarray
    theirs = np.concatenate(
        [rust.encode_step(whole(pcm[:, :, i : i + FRAME])) for i in range(0, pcm.shape[2], FRAME)], axis=2
    )
    ours = np.concatenate(
        [np.array(mimi.encode_step(pcm[:, :, i : i + FRAME])) for i in range(0, pcm.shape[2], FRAME)], axis=2
    )
    golden_mimi.codes_equal("streamed codes", ours, theirs)
    heard = np.concatenate([rust.decode_step(whole(theirs[:, :, i : i + 1])) for i in range(40)], axis=2)
    golden_mimi.audio(
        "streamed audio",
        np.concatenate(
            [np.array(mimi.decode_step(theirs[:, :, i : i + 1].astype(np.int32))) for i in range(40)], axis=2
        ),
        heard,
    )
