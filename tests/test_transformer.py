"""The attention window is exact and every way of cutting a sequence into calls gives the same."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import randomise

from moshi_mlx.config import TransformerConfig
from moshi_mlx.engine.state import put_rows
from moshi_mlx.modules import transformer
from moshi_mlx.modules.kv_cache import ring_attend, ring_capacity
from moshi_mlx.modules.transformer import Transformer

CONTEXT, LENGTH, DIM = 7, 40, 16


def stack(stride: int = 1, **changes) -> Transformer:
    values = dict(d_model=DIM, num_heads=4, num_layers=2, dim_feedforward=33, context=CONTEXT)
    return randomise(Transformer(TransformerConfig(**{**values, **changes}), stride), 3)


def inputs(batch: int = 1, length: int = LENGTH) -> mx.array:
    return mx.array(np.random.default_rng(0).standard_normal((batch, length, DIM)).astype(np.float32))


def stream(model: Transformer, x: mx.array, chunks, capacity=None, lockstep=True) -> np.ndarray:
    state = model.init_state(x.shape[0], capacity or model.capacity(), mx.float32, lockstep)
    out, at = [], 0
    for n in chunks:
        y, state = model(x[:, at : at + n], state)
        mx.eval(y, state)
        out.append(np.array(y))
        at += n
    assert at == x.shape[1]
    assert (np.array(state["position"]) == at).all()
    return np.concatenate(out, axis=1)


def cut(length: int, sizes) -> list[int]:
    chunks = []
    while sum(chunks) < length:
        chunks.append(min(sizes[len(chunks) % len(sizes)], length - sum(chunks)))
    return chunks


VARIANTS = [
    pytest.param({}, id="rope"),
    pytest.param({"positional_embedding": "rope_concat", "kv_repeat": 2}, id="half-split-grouped"),
    pytest.param({"positional_embedding": "sin", "norm": "layer_norm", "gating": "none"}, id="sin-layer-norm-plain"),
    pytest.param({"positional_embedding": "sin_rope", "layer_scale": 0.1}, id="sin-rope-scaled"),
    pytest.param({"positional_embedding": "none", "gating": "gelu", "norm": "rms_norm"}, id="no-positions-geglu"),
]


@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "own-clocks"])
def test_streaming_equals_whole_sequence(changes, lockstep):
    model, x = stack(**changes), inputs(2)
    whole = np.array(model.forward(x))
    for sizes in ([1], [3, 1, 5], [CONTEXT + 4], [LENGTH]):
        np.testing.assert_allclose(stream(model, x, cut(LENGTH, sizes), lockstep=lockstep), whole, atol=2e-5)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_any_chunking(sizes):
    model, x = stack(), inputs()
    np.testing.assert_allclose(stream(model, x, cut(LENGTH, sizes)), np.array(model.forward(x)), atol=2e-5)


@pytest.mark.parametrize("stride", [2, 3])
def test_aligned_calls_write_before_they_read(stride):
    """The codec's case: a frame is `stride` positions, the ring a little larger than the window."""
    model = stack(stride)
    assert model.capacity() == ring_capacity(CONTEXT, stride) < CONTEXT + 2 * stride
    x = inputs(length=12 * stride)
    np.testing.assert_allclose(stream(model, x, [stride] * 12), np.array(model.forward(x)), atol=2e-5)
    np.testing.assert_allclose(
        stream(model, x, [stride] * 2 + [4 * stride] * 2 + [stride] * 2), np.array(model.forward(x)), atol=2e-5
    )


def test_window_includes_the_current_position_and_no_more():
    model, x = stack(num_layers=1), inputs()
    base = stream(model, x, [1] * LENGTH)
    for back, sees in ((CONTEXT - 1, True), (CONTEXT, False)):
        changed = np.array(x)
        changed[:, 20] += 1
        out = stream(model, mx.array(changed), [1] * LENGTH)
        assert bool(np.abs(out[:, 20 + back] - base[:, 20 + back]).max() > 1e-4) == sees
        assert np.abs(out[:, :20] - base[:, :20]).max() == 0


def test_growing_rings_changes_nothing():
    model, x = stack(context=32), inputs()
    state, out = model.init_state(1, 4, mx.float32), []
    for t in range(LENGTH):
        capacity = transformer.capacity_of(state)
        if t >= capacity < 32:
            state = transformer.grow(state, 2 * capacity)
        y, state = model(x[:, t : t + 1], state)
        out.append(np.array(y))
    np.testing.assert_allclose(np.concatenate(out, axis=1), np.array(model.forward(x)), atol=2e-5)


def test_rows_start_pause_and_reset_by_themselves():
    model, rng = stack(), np.random.default_rng(5)
    x = np.array(inputs(3, 60))
    state = model.init_state(3, model.capacity(), mx.float32, lockstep=False)
    at, lives = [0, 0, 0], [[[]], [[]], [[]]]
    for t in range(60):
        if t in (20, 33):
            rows = np.array([False, t == 20, t == 33])
            for b in np.flatnonzero(rows).tolist():
                blank = model.init_state(1, model.capacity(), mx.float32, lockstep=False)
                state = put_rows(state, blank, [mx.array([b], mx.int32)])
                lives[b].append([])
        execute = rng.random(3) < 0.7
        feed = np.where(execute[:, None, None], np.stack([x[b, at[b]] for b in range(3)])[:, None], np.nan).astype(
            np.float32
        )
        y, state = model(mx.array(feed), state, execute=mx.array(execute))
        for b in np.flatnonzero(execute):
            lives[b][-1].append((at[b], np.array(y)[b, 0]))
            at[b] += 1
    for b in range(3):
        for life in lives[b]:
            first, last = life[0][0], life[-1][0] + 1
            alone = np.array(model.forward(mx.array(x[b : b + 1, first:last])))[0]
            np.testing.assert_allclose(np.stack([v for _, v in life]), alone, atol=2e-5)


def test_old_state_survives_the_next_step():
    model, x = stack(), inputs()
    state = model.init_state(1, model.capacity(), mx.float32)
    for t in range(10):
        _, state = model(x[:, t : t + 1], state)
    mx.eval(state)
    kept = state
    first = [np.array(model(x[:, 10:11], kept)[0]) for _ in range(2)]
    assert (first[0] == first[1]).all()


def test_ring_writes_are_in_place():
    """A stream of any length must not copy its window: the buffer stays where it is."""
    model, x = stack(num_layers=1, context=512), inputs(length=30)
    state = model.init_state(1, 512, mx.float32)
    mx.eval(state)
    where = set()
    for t in range(30):
        y, state = model(x[:, t : t + 1], state)
        mx.eval(y, state)
        where.add(np.asarray(memoryview(state["layers"][0])).ctypes.data)
    assert len(where) == 1


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("lockstep", [True, False], ids=["lockstep", "own-clocks"])
def test_packed_rings(bits, lockstep, monkeypatch):
    """Packed keys and values give what whole ones rounded the same way give, for every chunking and past the window."""
    model = stack(d_model=128, num_heads=2, kv_repeat=2, dim_feedforward=264)
    x = mx.array(np.random.default_rng(0).standard_normal((2, LENGTH, 128)).astype(np.float32))

    def rounded(q, kv, ring, span):
        return ring_attend(q, mx.dequantize(*mx.quantize(kv, 64, bits), 64, bits), ring, span)

    with monkeypatch.context() as patch:
        patch.setattr(transformer, "ring_attend", rounded)
        expected = stream(model, x, [1] * LENGTH)
    for sizes in ([1], [5, 1, 9]):
        state, out, at = model.init_state(2, model.capacity(), mx.float32, lockstep, bits), [], 0
        for n in cut(LENGTH, sizes):
            y, state = model(x[:, at : at + n], state)
            out.append(np.array(y))
            at += n
        np.testing.assert_allclose(np.concatenate(out, axis=1), expected, atol=1e-3)
    whole = 2 * 2 * 1 * CONTEXT * 64 * 4
    assert sum(a.nbytes for a in state["layers"][0].values()) == whole * (bits / 32 + 2 / 64)


def test_heads_that_cannot_be_packed_are_refused():
    from moshi_mlx.errors import InputError

    with pytest.raises(InputError, match="multiple of 32 features, here 4"):
        stack().init_state(1, CONTEXT, mx.float32, kv_bits=8)
