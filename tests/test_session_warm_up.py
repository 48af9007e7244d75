"""A session compiles everything its frames need when it is made, and nothing of that is heard."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from moshi_mlx import checkpoint
from moshi_mlx.engine import step as step_module
from moshi_mlx.engine.frame import FrameStep
from moshi_mlx.live.warmup import warm_up
from moshi_mlx.modules import transformer
from moshi_mlx.session import Session, codec_rust
from moshi_mlx.session.codec_rust import RustSession

PROGRAM = Path(__file__).with_name("compile_count.py")


def counted(model: Path, **options: int) -> tuple[list[int], list[int]]:
    """Traces and kernels: of the making of a session, and of its frames."""
    arguments = [f"{name}={value}" for name, value in options.items()]
    done = subprocess.run([sys.executable, PROGRAM, model, *arguments], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    made, later = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    return made, later


@pytest.mark.skipif(sys.platform != "linux", reason="counts kernels in /proc")
@pytest.mark.parametrize(
    ("preset", "options"),
    [
        ("tiny", {"frames": 270}),
        ("tiny", {"frames": 70, "batch": 2, "kv_bits": 8}),
        ("tiny-hibiki", {"frames": 70, "ends": 66}),
        ("tiny-hibiki", {"frames": 4, "ends": 1}),
        ("tiny-personaplex", {"frames": 70}),
    ],
    ids=str,
)
def test_no_frame_of_a_conversation_compiles(preset, options, tmp_path):
    """Through every size of the rings and once around them, through the end of a source, and in the conversation after that."""
    from random_checkpoint import write

    write(tmp_path, preset, None, seed=1)
    made, later = counted(tmp_path, **options)
    assert made[0] > 0
    assert made[1] > 10
    assert later == [0, 0]


def test_nothing_of_the_warm_up_is_heard(tiny_checkpoint, monkeypatch):
    """The first frame and all after it are those of a session that was never warmed up."""
    pcm = 0.1 * np.random.default_rng(0).standard_normal((12, 1920)).astype(np.float32)
    loaded = checkpoint.load(tiny_checkpoint)
    mx.random.seed(3)
    expected_draw = mx.random.uniform(shape=(4,)).tolist()
    mx.random.seed(3)
    warm = Session(loaded, seed=4)
    # Its draws are its own: the program's generator has not moved.
    assert mx.random.uniform(shape=(4,)).tolist() == expected_draw
    monkeypatch.setattr(FrameStep, "warm_up", lambda self, *args, **options: None)
    cold = Session(loaded, seed=4)
    assert warm.frames == cold.frames == 0
    for x in pcm:
        a, b = warm.step(x), cold.step(x)
        assert (a.index, a.text) == (b.index, b.text)
        assert (a.codes == b.codes).all() and (a.pcm == b.pcm).all()


@pytest.mark.cpu_only("a GPU's rings have one size")
def test_every_size_is_evaluated(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(step_module, "FIRST_CAPACITY", 64)
    sizes, evaluated = [], mx.eval

    def spy(*trees):
        for tree in trees:
            if isinstance(tree, dict) and "lm" in tree:
                sizes.append(transformer.capacity_of(tree["lm"]["trunk"]))
        evaluated(*trees)

    monkeypatch.setattr(mx, "eval", spy)
    session = Session.load(tiny_checkpoint)
    # The beginning of the conversation, then without a reply and with one.
    assert sizes == [64, 64, 64, 128, 250]
    assert transformer.capacity_of(session.state["lm"]["trunk"]) == 64


def test_what_the_warm_up_held_is_given_back(tiny_checkpoint):
    loaded = checkpoint.load(tiny_checkpoint)
    first = Session(loaded)
    mx.clear_cache()
    before = mx.get_active_memory()
    second = Session(loaded, seed=1)
    assert mx.get_cache_memory() < 100_000
    own = sum(array.nbytes for _, array in tree_flatten(second.state))
    assert mx.get_active_memory() - before < own + 100_000
    assert first.frames == second.frames


def test_the_session_with_the_rust_codec_warms_up_too(tiny_checkpoint, monkeypatch):
    class Codec:
        def __init__(self, *_, num_codebooks, max_seq_len):
            self.codebooks = num_codebooks

        def encode_step(self, pcm):
            return np.ones((1, self.codebooks, 1), np.uint32)

        def decode_step(self, codes):
            return np.zeros((1, 1, 1920), np.float32)

    monkeypatch.setitem(sys.modules, "rustymimi", types.SimpleNamespace(Tokenizer=Codec, __spec__=object()))
    monkeypatch.setattr(codec_rust.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(step_module, "FIRST_CAPACITY", 64)
    loaded = checkpoint.load(tiny_checkpoint, with_codec=False)
    loaded.files.mimi_config = None
    session = RustSession(loaded)
    traced, embed = [], type(loaded.lm).embed

    def counted_embed(self, tokens):
        traced.append(1)
        return embed(self, tokens)

    monkeypatch.setattr(type(loaded.lm), "embed", counted_embed)
    for _ in range(70):
        session.step(np.zeros(1920, np.float32))
    session.reset(3)
    session.step(np.zeros(1920, np.float32))
    assert traced == []


@pytest.mark.cpu_only("a GPU's rings have one size")
def test_live_measures_with_what_is_compiled(tiny_checkpoint, monkeypatch):
    """Before a live talk nothing is compiled that the session has not compiled."""
    monkeypatch.setattr(step_module, "FIRST_CAPACITY", 64)
    session = Session.load(tiny_checkpoint)
    traced, embed = [], type(session.lm).embed
    monkeypatch.setattr(type(session.lm), "embed", lambda self, tokens: traced.append(1) or embed(self, tokens))
    warmed = warm_up(session)
    assert warmed.full is not warmed.start
    assert traced == []
