"""What runs on a Mac: the branches for a GPU, taken on the CPU in float32, to the same tokens.

The whole files of tests that mean something there run through them with `pytest --gpu-branches FILES` (`slow` does it).
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import golden_cases
import golden_hibiki
import golden_lm
import golden_mimi
import golden_personaplex
import golden_system
import mlx.core as mx
import numpy as np
import pytest
from golden_cases import golden
from mlx.utils import tree_flatten
from toy import make_lm, make_mimi

from moshi_mlx import checkpoint
from moshi_mlx.engine import prefill
from moshi_mlx.engine.frame import FrameStep
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.engine.prefill import Forced
from moshi_mlx.engine.rows import Rows
from moshi_mlx.engine.step import MOST_OF_MEMORY, Guidance, Step
from moshi_mlx.machine import device, memory
from moshi_mlx.machine.cpu import cores, layout, rotation
from moshi_mlx.modules import transformer
from moshi_mlx.modules.attention import make_rotation
from moshi_mlx.session import Session

pytestmark = pytest.mark.usefixtures("gpu_branches")
ROOT = Path(__file__).parent.parent
FILES = (
    "goldens",
    "mimi",
    "transformer",
    "generate",
    "prefill",
    "session",
    "session_state",
    "hibiki",
    "personaplex",
    "sampling",
    "lora",
)


@pytest.fixture
def nothing_of_the_cpu(monkeypatch):
    """What stands in on the CPU backend may not be used."""

    def refuse(*_, **__):
        pytest.fail("this is the CPU backend's")

    monkeypatch.setattr(cores, "streams", refuse)
    monkeypatch.setattr(cores, "packed_product", refuse)
    monkeypatch.setattr(layout, "lay_out", refuse)
    monkeypatch.setattr(rotation, "make_rotation", refuse)


@pytest.fixture
def calls(monkeypatch) -> Counter:
    """How often each of `mx.fast` is asked for."""
    seen: Counter = Counter()

    def watch(name: str):
        original = getattr(mx.fast, name)

        def call(*args, **kwargs):
            seen[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(mx.fast, name, call)

    for name in ("rope", "rms_norm", "layer_norm", "scaled_dot_product_attention"):
        watch(name)
    return seen


def test_they_are_taken(nothing_of_the_cpu, calls):
    """Rotation, norms and attention in the graph of a frame are MLX's own kernels, as many as Metal launches, and nothing else is."""
    lm, mimi = make_lm(), make_mimi()
    frame = FrameStep(Step(lm), mimi)
    state = frame.first(frame.init_state([0]))
    calls.clear()
    state, sound, tokens = frame(state, mx.zeros((1, 1920)), 5)
    layers, depth, codec = lm.cfg.transformer.num_layers, lm.dep_q, 2 * mimi.cfg.transformer.num_layers
    dep = lm.cfg.depformer.transformer.num_layers
    assert calls["rope"] == layers + codec
    assert calls["rms_norm"] == 2 * layers + 1 + depth * 2 * dep
    assert calls["layer_norm"] == 2 * codec
    assert calls["scaled_dot_product_attention"] == layers + codec + (depth - 1) * dep
    mx.eval(state, sound, tokens)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("own_clocks", [False, True])
def test_rotation_has_an_offset_for_every_head_or_one_for_all(monkeypatch, batch, length, own_clocks):
    """A GPU steps through an offset with an axis, one of a single element too, by what it rotates: past the end the CPU does not look."""
    seen = []
    original = mx.fast.rope
    monkeypatch.setattr(
        mx.fast, "rope", lambda x, *a, offset, **k: (seen.append((x, offset)), original(x, *a, offset=offset, **k))[1]
    )
    cfg = make_lm().cfg.transformer
    start = mx.array([5, 6, 7][:batch] if own_clocks else 5, mx.int32)
    rotate = make_rotation(cfg, start, batch, length)
    rotate(mx.zeros((batch, 3, cfg.num_heads, length, cfg.head_dim)))
    [(x, offset)] = seen
    assert offset.ndim == 0 or offset.shape == x.shape[:1]


def test_without_them_others_are_taken(calls, monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    gen = LmGen(make_lm(), seed=0)
    gen.step(np.zeros((1, 3), int))
    assert calls["rope"] == 0


def test_packed_models_stay_packed(tiny_checkpoint, nothing_of_the_cpu):
    import mlx.nn as nn

    lm = make_lm(dim=128, num_heads=2, depformer_dim=64, depformer_dim_feedforward=96)
    nn.quantize(lm, bits=4, group_size=32, class_predicate=lambda _, m: isinstance(m, nn.Linear))
    gen = LmGen(lm, seed=0)
    gen.step(np.zeros((1, 3), int))
    assert type(lm.transformer.layers[0].self_attn.in_proj) is nn.QuantizedLinear


def test_activations_are_bfloat16(tiny_checkpoint):
    session = Session.load(tiny_checkpoint)
    assert session.lm.dtype == mx.bfloat16
    assert session.mimi.downsample.weight.dtype == mx.float32
    frames = [session.step(np.zeros(1920, np.float32)) for _ in range(4)]
    assert all(np.isfinite(f.pcm).all() for f in frames)


# Goldens --------------------------------------------------------------------------------------------------------


@golden("lm_run")
def test_lm_run(case):
    golden_lm.check_run(golden_lm.load(case.parent.parent), case)


@golden("lm_full")
def test_lm_full(case):
    golden_lm.check_full(case.parent, golden_lm.load(case.parent))


@golden("mimi")
def test_mimi(case):
    golden_mimi.check(case.parent)


@golden("system")
def test_system(case):
    expected = golden_lm.read(case.parent / "expect.safetensors")
    for compile in (False, True):
        golden_system.check_session(case.parent, next(case.parent.glob("*.wav")), expected, compile)


@golden("hibiki")
def test_hibiki(case):
    golden_hibiki.check(case.parent)


@golden("personaplex")
def test_personaplex(case):
    golden_personaplex.check(case.parent)


def test_the_goldens_are_there(request):
    assert golden_cases.discover(Path(request.config.getoption("--goldens")), "system")


@pytest.mark.slow
def test_whole_files_through_them():
    files = [str(ROOT / "tests" / f"test_{name}.py") for name in FILES]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--gpu-branches", "-q", "-x", *files], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-3000:]


# Rings ----------------------------------------------------------------------------------------------------------


def test_rings_are_whole_from_the_start(monkeypatch):
    step = Step(make_lm(context=600))
    assert step.capacities(1) == step.capacities(1000) == [600]
    monkeypatch.setattr(memory, "device_bytes", lambda: 1000)
    assert step.capacities(1) == [256, 512, 600], "where memory is short, they grow"
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    assert step.capacities(1) == [256, 512, 600]


def test_rings_of_all_rows_have_to_fit(monkeypatch):
    """Memory for two rows at the window: two rows have it from the start, three grow, and so do two that are guided."""
    lm, mimi = make_lm(context=600), make_mimi()
    two = memory.ring_bytes(lm.cfg.transformer, 2, lm.dtype)
    monkeypatch.setattr(memory, "device_bytes", lambda: int(two / MOST_OF_MEMORY))
    frame = FrameStep(Step(lm), mimi)
    assert [Rows(frame, count).capacity for count in (1, 2, 3)] == [600, 600, 256]
    assert [transformer.capacity_of(frame.init_state([0] * b)["lm"]["trunk"]) for b in (1, 2, 3)] == [600, 600, 256]
    assert [transformer.capacity_of(LmGen(lm, batch_size=b).state["trunk"]) for b in (2, 3)] == [600, 256]
    assert Step(lm, guidance=Guidance(2.0)).capacities(2) == [256, 512, 600]
    # A prompt that is read for a row has rings like those of its batch.
    step, prompt = (
        Step(lm, compile=False),
        Forced(prefill.delayed(lm.cfg, np.zeros((9, lm.cfg.num_channels), np.int32))),
    )
    for rows, capacity in ((None, 600), (3, 256)):
        begun = prefill._result(prefill.in_pieces(step, prompt, [0], rows=rows))
        assert transformer.capacity_of(begun["trunk"]) == capacity


def places(rings: list) -> list[int]:
    """Where the arrays of rings lie. Nothing is kept of them: a ring that somebody holds is copied."""
    return [np.asarray(memoryview(a)).ctypes.data for _, a in tree_flatten(rings)]


def moved(frame: FrameStep, frames: int) -> tuple[list[int], list[set[int]]]:
    """Bytes that every frame took beyond what was there before, and the buffers each ring has lived in."""
    state, pcm = frame.first(frame.init_state([0])), mx.zeros((1, 1920))
    mx.eval(state)
    taken: list[int] = []
    buffers: list[set[int]] = [set() for _ in state["lm"]["trunk"]["layers"]]
    for t in range(1, frames + 1):
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        state, _, _ = frame.evaluated(state, pcm, t)
        taken.append(mx.get_peak_memory() - before)
        for seen, place in zip(buffers, places(state["lm"]["trunk"]["layers"]), strict=True):
            seen.add(place)
    return taken, buffers


def talk_in_place(context: int, frames: int) -> None:
    lm, mimi = make_lm(dim=512, num_heads=8, context=context), make_mimi()
    frame = FrameStep(Step(lm), mimi)
    rings = memory.ring_bytes(lm.cfg.transformer, 1, mx.float32)
    taken, buffers = moved(frame, frames)
    assert [len(b) for b in buffers] == [1] * len(buffers), "a ring moved"
    extra = max(taken) - np.median(taken)
    assert extra < rings / len(buffers) / 2, (
        f"a frame took {extra} bytes more than others, a ring has {rings / len(buffers)}"
    )


def test_no_frame_moves_a_ring():
    talk_in_place(context=300, frames=330)


@pytest.mark.slow
def test_no_frame_of_four_minutes_moves_a_ring():
    talk_in_place(context=3000, frames=3100)


def test_a_frame_that_grows_rings_would_be_seen(monkeypatch):
    """The same measure where they grow, as on the CPU."""
    monkeypatch.setattr(device, "on_gpu", lambda: False)
    lm = make_lm(dim=512, num_heads=8, context=300)
    rings = memory.ring_bytes(lm.cfg.transformer, 1, mx.float32)
    taken, buffers = moved(FrameStep(Step(lm), make_mimi()), 260)
    assert [len(b) for b in buffers] == [2] * len(buffers)
    assert taken[255] == max(taken)
    assert max(taken) - np.median(taken) > rings / len(buffers) / 2


@pytest.mark.parametrize("options", [{"kv_bits": 8}, {"batch_size": 2}, {"support_out_of_sync": True}])
def test_other_rings_stay_in_place(options):
    lm = make_lm(dim=128, num_heads=2, context=300)
    gen = LmGen(lm, seed=0, **options)
    seen: dict[int, set[int]] = {}
    for _ in range(20):
        gen.step(np.zeros((gen.batch_size, 3), int))
        mx.eval(gen.frame)
        for i, place in enumerate(places(gen._state["trunk"]["layers"])):
            seen.setdefault(i, set()).add(place)
    assert {len(s) for s in seen.values()} == {1}


def test_memory_is_wired_and_emptied_by_loading(tiny_checkpoint, monkeypatch):
    """For scripts as for commands; what is wired asks the machine, not the branches."""
    wired = []
    monkeypatch.setattr(memory, "wire", lambda: wired.append(1))
    loaded = checkpoint.load(tiny_checkpoint)
    assert wired == [1]
    assert mx.get_cache_memory() < memory.module_bytes(loaded.lm) / 20


def test_nothing_is_wired_where_there_is_no_metal():
    if mx.metal.is_available():
        pytest.skip("this machine has a Metal GPU")
    assert memory.wire() == 0
