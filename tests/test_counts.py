"""What carries over to Metal is counted, never timed: operations per frame, evaluations, traces."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from count_operations import make_model, simulate
from graphs import as_gpu
from mlx.utils import tree_flatten
from toy import make_lm

from moshi_mlx import checkpoint
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.engine.step import Step
from moshi_mlx.modules.matrix import split_columns
from moshi_mlx.session import Session


@pytest.mark.parametrize(
    ("precision", "depth_steps", "most"),
    [("q4", 8, 1018), ("q8", 8, 1018), ("mxfp4", 8, 1018), ("bf16", 8, 1014), ("q4", 16, 1602)],
)
def test_launches_of_the_language_model(precision, depth_steps, most):
    found = simulate("lm", depth_steps=depth_steps, precision=precision)
    assert found.total <= most, found.launches.most_common(40)
    assert found.launches["QuantizedMatmul"] + found.launches["Matmul"] == 32 * 4 + 2 + depth_steps * (6 * 4 + 1)
    assert found.launches["Attention"] == 32 + 6 * (depth_steps - 1)
    assert found.launches["RoPE"] == found.launches["ScatterAxis"] == 32
    assert "packed product" not in found.copies and "product" not in found.copies
    assert "held by somebody" not in found.copies, "rings and the depth transformer's keys are written in place"


def test_launches_of_the_codec_and_of_a_whole_frame():
    """As of version 1.0.0: 302, 237 and 1809 with 8 depth steps, 2674 with 16."""
    assert simulate("encode").total <= 252
    assert simulate("decode").total <= 214
    assert simulate("frame").total <= 1484
    assert simulate("frame", depth_steps=16).total <= 2125


def test_counting_tells_the_reference_apart():
    assert simulate("lm", compile=False).total > 1300


def test_fusion_is_that_of_mlx():
    """As many kernels as `mx.compile` makes of the same graph."""
    lm = make_model()
    with as_gpu():
        step = Step(lm)
        state, given = step.init_state([0], 256), mx.zeros((1, step.clock.given), mx.int32)
        mx.eval(state, given)
        state, out = step.run(state, given)
        names = operations(state, out.frame, out.valid, out.text, out.audio)
    assert sum(n for name, n in names.items() if name.startswith("Compiled")) == simulate("lm").launches["Fused"]


def operations(*outputs) -> Counter:
    """Names in the graph that MLX would evaluate."""
    with tempfile.NamedTemporaryFile(suffix=".dot") as file:
        mx.export_to_dot(file.name, *[a for _, a in tree_flatten(outputs)])
        return Counter(re.findall(r'label ="([^"]+)", shape=rectangle', Path(file.name).read_text()))


def test_layouts_are_those_of_mlx():
    """Strides of a gate's output, which a product would copy if they were the whole row's; axes of one included."""
    x = mx.random.normal((1, 64))
    both = mx.compile(lambda x: nn.silu(mx.split(x, 2, axis=-1)[0]) * mx.split(x, 2, axis=-1)[1])(x)
    ours = mx.compile(lambda x: nn.silu(split_columns(x, 2)[0]) * split_columns(x, 2)[1])(x)
    mx.eval(both, ours)
    assert memoryview(both).strides == (4 * 64, 4)
    assert memoryview(ours).strides == (4 * 32, 4)
    assert mx.array_equal(both, ours).item()


@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (1, 1, 64), (2, 5, 64)])
def test_columns_are_split(shape):
    x = mx.random.normal(shape)
    for a, b in zip(split_columns(x, 4), mx.split(x, 4, axis=-1), strict=True):
        assert a.shape == b.shape and mx.array_equal(a, b).item()


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
