"""What carries over to Metal is counted, never timed: operations per frame, evaluations, traces."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from count_operations import frame_operations, split
from toy import make_lm

from moshi_mlx import checkpoint
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.session import Session


@pytest.mark.parametrize(
    ("precision", "depth_steps", "most"),
    [("q4", 8, 1000), ("q8", 8, 1000), ("mxfp4", 8, 1000), ("bf16", 8, 1000), ("q4", 16, 1600)],
)
def test_operations_per_frame(precision, depth_steps, most):
    """The published package needs 1425 with 8 depth steps and 2284 with 16."""
    compute, _ = split(frame_operations(depth_steps, precision))
    assert sum(compute.values()) <= most, compute.most_common(40)
    products = compute["QuantizedMatmul"] + compute["Matmul"]
    assert products == 32 * 4 + 2 + depth_steps * (6 * 4 + 1)
    assert compute["Attention"] == 32 + 6 * (depth_steps - 1)
    assert compute["RoPE"] == compute["ScatterAxis"] == 32


def test_counting_tells_the_reference_apart():
    plain, _ = split(frame_operations(compile=False))
    assert sum(plain.values()) > 1200


def test_one_evaluation_per_frame(tiny_checkpoint, monkeypatch):
    session = Session(checkpoint.load(tiny_checkpoint))
    session.step(np.zeros(1920, np.float32))
    calls = []
    original = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *a: (calls.append(1), original(*a)))
    monkeypatch.setattr(mx, "async_eval", lambda *a: pytest.fail("a frame is evaluated once"))
    for _ in range(5):
        session.step(np.zeros(1920, np.float32))
    assert len(calls) == 5


def test_one_evaluation_per_step_of_the_language_model(monkeypatch):
    gen = LmGen(make_lm(), seed=0)
    gen.step(np.zeros((1, 3), int))
    calls = []
    original = mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda *a: (calls.append(1), original(*a)))
    monkeypatch.setattr(mx, "eval", lambda *a: pytest.fail("a step waits for nothing"))
    for _ in range(5):
        gen.step(np.zeros((1, 3), int))
        np.array(gen.frame)
    assert len(calls) == 5


def count_traces(lm) -> list:
    seen, original = [], lm.embed

    def embed(tokens):
        seen.append(tokens.shape)
        return original(tokens)

    object.__setattr__(lm, "embed", embed)
    return seen


def test_traces_are_the_sizes_of_the_rings():
    lm = make_lm(context=600)
    traces = count_traces(lm)
    gen = LmGen(lm, seed=0)
    for _ in range(700):
        gen.step(np.zeros((1, 3), int))
    assert len(traces) == 3


def test_no_frame_of_a_conversation_is_traced(tiny_copy):
    """All sizes are traced before the first frame."""
    import json

    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "context": 300}))
    loaded = checkpoint.load(tiny_copy)
    session = Session(loaded)
    traces = count_traces(loaded.lm)
    for _ in range(320):
        session.step(np.zeros(1920, np.float32))
    assert traces == []
    assert session.state["lm"]["trunk"]["layers"][0].shape[3] == 300


def test_compiled_steps_write_in_place():
    lm = make_lm(context=64)
    gen = LmGen(lm, seed=0)
    buffers = set()
    for _ in range(100):
        gen.step(np.zeros((1, 3), int))
        np.array(gen.frame)
        buffers.add(np.asarray(memoryview(gen.state["trunk"]["layers"][1])).ctypes.data)
    assert len(buffers) == 1


@pytest.mark.parametrize(
    "options", [{}, {"kv_bits": 8}, {"generated_codebooks": 2}], ids=["plain", "packed-rings", "fewer"]
)
def test_compiled_and_plain_draw_the_same_tokens(options):
    frames = []
    for compile in (False, True):
        lm = make_lm(dim=128, num_heads=2)
        gen = LmGen(lm, seed=3, compile=compile, **options)
        rows = []
        for t in range(40):
            gen.step(np.random.default_rng(t).integers(0, 24, (1, 4)))
            rows.append(np.array(gen.frame))
        frames.append(np.stack(rows))
    assert (frames[0] == frames[1]).all()
