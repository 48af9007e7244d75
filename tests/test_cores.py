"""Products with packed weights on several cores: the same numbers as in one piece, in any thread, and nothing else on a GPU."""

from __future__ import annotations

import threading

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from toy import make_lm

from moshi_mlx.engine.generate import LmGen
from moshi_mlx.machine import device
from moshi_mlx.machine.cpu import cores, layout
from moshi_mlx.modules.matrix import Matrix

pytestmark = pytest.mark.cpu_only("a GPU has one queue, and packed products of its own")


@pytest.fixture
def four_cores(monkeypatch):
    """Small matrices are cut as large ones are, for four cores, and stay packed."""
    monkeypatch.setattr(cores, "SMALLEST_PIECE", 1)
    monkeypatch.setattr(cores, "_cores", lambda: 4)
    monkeypatch.setattr(cores, "_local", threading.local())
    monkeypatch.setattr(layout, "UNPACK_BYTES", 0)


KINDS = {
    "q4": {"bits": 4, "group_size": 32},
    "q8": {"bits": 8, "group_size": 64},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [64, 70])
def test_pieces_make_the_product(four_cores, kind, rows):
    layer = nn.QuantizedLinear(128, rows, bias=False, **KINDS[kind])
    for shape in ((1, 128), (3, 128), (2, 5, 128)):
        x = mx.random.normal(shape)
        assert mx.array_equal(Matrix.of(layer).product(x), layer(x)).item()


def test_as_many_pieces_as_cores(four_cores, monkeypatch):
    layer = nn.QuantizedLinear(128, 64, bias=False, bits=4, group_size=32)
    used = []
    original = mx.quantized_matmul
    monkeypatch.setattr(mx, "quantized_matmul", lambda *a, **k: (used.append(k["stream"]), original(*a, **k))[1])
    Matrix.of(layer).product(mx.ones((1, 128)))
    assert len(used) == len({str(s) for s in used}) == 4
    used.clear()
    monkeypatch.setattr(cores, "SMALLEST_PIECE", 64 * 128)
    Matrix.of(layer).product(mx.ones((1, 128)))
    assert len(used) == 1, "a small product stays whole"


def test_nothing_is_cut_on_a_gpu(four_cores, monkeypatch):
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    monkeypatch.setattr(cores, "streams", lambda: pytest.fail("a GPU has one queue"))
    layer = nn.QuantizedLinear(128, 64, bias=False, bits=4, group_size=32)
    x = mx.random.normal((1, 128))
    assert mx.array_equal(Matrix.of(layer).product(x), layer(x)).item()
    assert device.spare_stream() is None


def test_a_packed_model_draws_the_same_tokens_on_all_cores(four_cores):
    """Compiled on all cores and plain on one; in the main thread and, with streams of its own, in another."""
    seen: dict[str, np.ndarray] = {}

    def talk(name: str, compile: bool = True) -> None:
        lm = make_lm(dim=128, num_heads=2, depformer_dim=64, depformer_dim_feedforward=96)
        nn.quantize(lm, **KINDS["q4"], class_predicate=lambda _, m: isinstance(m, nn.Linear))
        gen = LmGen(lm, seed=3, compile=compile)
        assert compile == any(type(m).__call__ is not nn.QuantizedLinear.__call__ for m in packed_layers(lm))
        frames = []
        for t in range(20):
            gen.step(np.random.default_rng(t).integers(0, 24, (1, 3)))
            frames.append(np.array(gen.frame))
        seen[name] = np.stack(frames)

    talk("plain", compile=False)
    talk("here")
    thread = threading.Thread(target=talk, args=("there",))
    thread.start()
    thread.join()
    assert (seen["plain"] == seen["here"]).all()
    assert (seen["plain"] == seen["there"]).all()


def packed_layers(lm) -> list[nn.Module]:
    return [m for m in lm.modules() if isinstance(m, nn.QuantizedLinear)]
