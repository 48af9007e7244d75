"""What is put into a session is checked whole before anything is replaced; what a file holds can do no more than be refused."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map_with_path

from moshi_mlx import checkpoint
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.errors import CheckpointError, InputError
from moshi_mlx.modules import transformer
from moshi_mlx.session import Session
from moshi_mlx.session.conversation_file import load_conversation, save_conversation

FUZZ = Path(__file__).with_name("fuzz_states.py")
FORMAT = "moshi_mlx conversation 1"


def sound(t: int, rows: int = 1) -> np.ndarray:
    return 0.2 * np.random.default_rng(t).standard_normal((rows, 1920)).astype(np.float32)


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint):
    return checkpoint.load(tiny_checkpoint, dtype=mx.float32)


@pytest.fixture(scope="module")
def talk(loaded):
    """A session, a state of it, and what it says from there."""
    session = Session(loaded, seed=3, compile=False)
    for t in range(6):
        session.step(sound(t)[0])
    state = session.state
    return session, state, [session.step(sound(t)[0]).codes.tolist() for t in range(6, 9)]


def with_array(state: dict, name: str, change: Callable[[mx.array], object]) -> dict:
    """`state` with one array changed."""
    assert name in dict(tree_flatten(state)), name
    return tree_map_with_path(lambda path, a: change(a) if path == name else a, state)


def at(*index: int, value: float) -> Callable[[mx.array], mx.array]:
    """One number of an array replaced."""

    def change(array: mx.array) -> mx.array:
        copy = mx.array(array)
        copy[index] = value
        return copy

    return change


RING, TAIL = "lm.trunk.layers.1", "encoder.convs.0.tail"
CASES = {
    # What was reported first.
    "a token beyond its table": ("lm.tokens", at(0, 3, 2, value=100000), "the token 100000; text is -2 .. 200 and codes are -2 .. 256"),
    "a token below all": ("lm.tokens", at(0, 3, 2, value=-5), "holds the token -5"),
    "NaN in a ring": (RING, at(0, 0, 1, 5, 3, value=float("nan")), "lm.trunk.layers.1 holds NaN or infinity"),
    "a negative position": ("lm.offset", lambda a: a - 100, "lm.offset should be from 0"),
    "a huge position": ("lm.offset", lambda a: a + 2**30, "lm.offset should be from 0 to 1073741824"),
    "rings of different lengths": (RING, lambda a: a[:, :, :, :100], r"layers.1 should be \[2, 1, 4, 250, 32\] bfloat16|float32"),
    # Others of the kind.
    "a text token beyond its table": ("lm.tokens", at(0, 0, 1, value=201), "the token 201; text is -2 .. 200"),
    "an initial token where a code is decoded next": ("lm.tokens", at(0, 1, 1, value=256), "holds 256 where a code of the next frames"),
    "no token where a code is decoded next": ("lm.tokens", at(0, 1, 1, value=-2), "holds -2 where a code of the next frames"),
    "a position of the trunk that is not the model's": ("lm.trunk.position", lambda a: a + 1, "lm.trunk.position should be lm.offset"),
    "infinity in a ring of the codec": ("decoder.transformer.layers.0", at(0, 0, 0, 1, 1, value=float("-inf")), "decoder.transformer.layers.0 holds"),
    "NaN in a convolution": (TAIL, at(0, 0, 0, value=float("nan")), "encoder.convs.0.tail holds NaN"),
    "half a frame in the codec": ("encoder.transformer.position", lambda a: a - 1, "encoder.transformer.position should be a multiple of 2 from 0 to 14"),
    "a codec ahead of the model": ("decoder.transformer.position", lambda a: a + 100, "decoder.transformer.position should be"),
    "a conversation that has not begun": ("lm.offset", lambda a: a * 0, "position should be lm.offset"),
    "another type": ("lm.seed", lambda a: a.astype(mx.int32), r"lm.seed should be \[1\] uint32, found \[1\] int32"),
    "two rows for one": (TAIL, lambda a: mx.concatenate([a, a]), "is the state of another model or of other options"),
    "an array of NumPy": ("lm.tokens", np.array, "lm.tokens should be an array of MLX, found ndarray"),
    "a number": ("lm.offset", lambda a: 7, "lm.offset should be an array of MLX, found int"),
    "characters that are none": ("text", lambda a: mx.array(np.array([[1, 255, 0, 0]], np.uint8)), "beginnings of characters"),
    "more bytes than a character has": ("text", lambda a: mx.array(np.array([[200, 1, 2, 3]], np.uint8)), "beginnings of characters"),
    "a whole character": ("text", lambda a: mx.array(np.array([[2, 195, 169, 0]], np.uint8)), "beginnings of characters"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_state_that_cannot_be(talk, case):
    session, state, expected = talk
    name, change, words = CASES[case]
    session.state = state
    with pytest.raises(InputError, match=words):
        session.state = with_array(state, name, change)
    assert [session.step(sound(t)[0]).codes.tolist() for t in range(6, 9)] == expected


@pytest.mark.parametrize("case", [c for c in CASES if c not in ("an array of NumPy", "a number")], ids=str)
def test_a_file_that_cannot_be(talk, case, loaded, tmp_path):
    session, state, expected = talk
    name, change, words = CASES[case]
    path = tmp_path / "talk.safetensors"
    arrays = dict(tree_flatten(with_array(state, name, change)))
    mx.save_safetensors(str(path), arrays, {"format": FORMAT, "model": loaded.fingerprint})
    session.state = state
    with pytest.raises(CheckpointError, match=words) as told:
        load_conversation(session, path)
    assert str(path) in str(told.value)
    assert [session.step(sound(t)[0]).codes.tolist() for t in range(6, 9)] == expected


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda s: {}, "the state lacks 'decoder'"),
        (lambda s: None, "the state should be a dict, found None"),
        (lambda s: {**s, "more": 1}, "has the unknown part 'more'"),
        (lambda s: {**s, "lm": []}, "lm should be a dict with offset, seed, tokens, trunk, found list"),
        (lambda s: {**s, "encoder": {}}, "encoder lacks 'convs'"),
        (lambda s: {**s, "encoder": s["decoder"]}, "encoder"),
        (lambda s: {**s, "lm": {**s["lm"], "trunk": {**s["lm"]["trunk"], "layers": []}}}, "should be a list of 2, found 0"),
        (lambda s: {**s, "lm": {**s["lm"], "trunk": {**s["lm"]["trunk"], "layers": 5}}}, "should be a list of 2, found int"),
        (lambda s: {**s, "text": mx.zeros((2, 4), mx.uint8)}, r"text should be an array \[1, 4\] uint8"),
    ],
)  # fmt: skip
def test_containers_that_cannot_be(talk, make, words):
    session, state, expected = talk
    session.state = state
    with pytest.raises(InputError, match=words):
        session.state = make(state)
    assert [session.step(sound(t)[0]).codes.tolist() for t in range(6, 9)] == expected


def test_states_of_other_models_and_options(talk, loaded, tiny_checkpoint, tmp_path):
    session, state, _ = talk
    for other, words in (
        (Session(loaded, batch=2, compile=False), "of another model or of other options"),
        (
            Session(loaded, kv_bits=8, compile=False),
            "packed, here they are stored whole: make the session with the same kv_bits",
        ),
    ):
        with pytest.raises(InputError, match=words):
            session.state = other.state
    with pytest.raises(InputError, match="stored whole, here they are packed"):
        Session(loaded, kv_bits=4, compile=False).state = state
    with pytest.raises(InputError, match="packed otherwise"):
        Session(loaded, kv_bits=4, compile=False).state = Session(loaded, kv_bits=8, compile=False).state
    shorter = Session.load(tiny_checkpoint, context=40, compile=False, dtype=mx.float32)
    with pytest.raises(InputError, match="saved with another context"):
        shorter.state = state
    for t in range(45):
        shorter.step(sound(t)[0])
    # Full and smaller than this session's window: what was said before is gone from it.
    with pytest.raises(InputError, match="rings of lm.trunk have 40 slots, which 46 positions cannot have left"):
        session.state = shorter.state


def test_rings_of_an_odd_size_are_made_a_usual_one(talk):
    """As versions that let rings grow otherwise may leave them: the talk goes on the same, on a size that has been compiled for."""
    session, state, expected = talk
    trunk = state["lm"]["trunk"]
    cut = {**trunk, "layers": [ring[:, :, :, :33] for ring in trunk["layers"]]}
    session.state = {**state, "lm": {**state["lm"], "trunk": cut}}
    assert transformer.capacity_of(session.state["lm"]["trunk"]) == 250
    assert [session.step(sound(t)[0]).codes.tolist() for t in range(6, 9)] == expected


def test_states_without_text_and_of_a_translation_that_ended(talk, tmp_path_factory):
    session, state, expected = talk
    session.state = {name: part for name, part in state.items() if name != "text"}
    assert [session.step(sound(t)[0]).codes.tolist() for t in range(6, 9)] == expected
    from random_checkpoint import write

    folder = tmp_path_factory.mktemp("hibiki")
    write(folder, "tiny-hibiki", None, seed=1)
    translation = Session.load(folder, compile=False)
    for t in range(3):
        translation.step(sound(t)[0])
    translation.step(sound(3)[0], ended=True)
    saved = translation.state
    first = translation.step(sound(4)[0]).codes.tolist()
    translation.state = saved
    assert translation.step(sound(4)[0]).codes.tolist() == first


def test_a_generators_state_is_checked_too(loaded):
    gen = LmGen(loaded.lm, seed=1, compile=False)
    gen.step(np.zeros((1, 8), np.int32))
    state = gen.state
    for name, change, words in (
        ("tokens", at(0, 3, 2, value=100000), "the token 100000"),
        ("trunk.layers.0", at(0, 0, 0, 0, 0, value=float("inf")), "holds NaN or infinity"),
    ):
        with pytest.raises(InputError, match=words):
            gen.state = with_array(state, name, change)
    gen.state = state
    assert gen.steps == 1


def test_generators_whose_rows_have_clocks_of_their_own(loaded):
    gen = LmGen(loaded.lm, batch_size=2, seed=1, support_out_of_sync=True, compile=False)
    gen.step(np.zeros((2, 8), np.int32), execute=[True, False])
    state = gen.state
    gen.state = state
    assert np.array(gen.state["offset"]).tolist() == [1, 0]
    with pytest.raises(InputError, match="lm.trunk.position should be lm.offset"):
        gen.state = with_array(state, "offset", lambda a: a + 1)


# Files --------------------------------------------------------------------------------------------------------------


def test_a_file_of_another_model(talk, tmp_path, tmp_path_factory):
    """The same shapes, other weights: only the fingerprint tells."""
    from random_checkpoint import write

    session, _, _ = talk
    folder = tmp_path_factory.mktemp("other")
    write(folder, "tiny", None, seed=2)
    other = Session.load(folder, compile=False)
    save_conversation(other, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="was saved with another model than"):
        load_conversation(session, tmp_path / "other.safetensors")


@pytest.mark.parametrize("options", [{"quantized": 8}, {"quantized": 4}, {"dtype": mx.bfloat16}, {"dtype": mx.float16}])
def test_a_file_of_another_precision(talk, tmp_path, options):
    """The same files, packed while they are loaded, or computed in another type."""
    session, state, _ = talk
    session.state = state
    save_conversation(session, tmp_path / "talk.safetensors")
    other = Session.load(session.checkpoint.files.source, compile=False, **options)
    with pytest.raises(CheckpointError, match=r"another model|should be .*float16, found .* float32"):
        load_conversation(other, tmp_path / "talk.safetensors")
    save_conversation(other, tmp_path / "talk.safetensors")
    load_conversation(other, tmp_path / "talk.safetensors")
    with pytest.raises(CheckpointError, match=r"another model|should be .* float32, found .*float16"):
        load_conversation(session, tmp_path / "talk.safetensors")


def test_files_of_version_1_0_0_still_load_with_a_notice(talk, tmp_path):
    session, state, expected = talk
    path = tmp_path / "talk.safetensors"
    mx.save_safetensors(str(path), dict(tree_flatten(state)), {"format": FORMAT})
    with pytest.warns(UserWarning, match="does not say which model it was saved with"):
        load_conversation(session, path)
    assert [session.step(sound(t)[0]).codes.tolist() for t in range(6, 9)] == expected
    save_conversation(session, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_conversation(session, path)


def test_names_of_a_file_are_looked_up_and_never_followed(talk, tmp_path):
    """A list with a part number 99999999 would be a list of that length."""
    session, state, _ = talk
    path = tmp_path / "talk.safetensors"
    arrays = dict(tree_flatten(state))
    for name in ("lm.trunk.layers.99999999", "lm.trunk.layers.0.packed", "..", "lm", "x" * 5000):
        mx.save_safetensors(str(path), {**arrays, name: mx.array([1])}, {"format": FORMAT})
        with pytest.raises(CheckpointError, match="is not on both sides") as told:
            load_conversation(session, path)
        assert len(str(told.value)) < 500


# One thing changed, at random ---------------------------------------------------------------------------------------


def fuzz(model: Path, folder: Path, examples: int) -> dict:
    """What became of the states and files that were tried; the process has to come to its end by itself."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", FUZZ, model, folder, str(examples)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_whatever_is_changed_is_refused_or_can_be_stepped(tiny_checkpoint, tmp_path):
    tried = fuzz(tiny_checkpoint, tmp_path, 40)
    assert tried["refused"] > 40
    assert tried["stepped"] > 0


@pytest.mark.slow
def test_whatever_is_changed_is_refused_or_can_be_stepped_at_length(tiny_checkpoint, tmp_path):
    tried = fuzz(tiny_checkpoint, tmp_path, 2000)
    assert tried["refused"] > 2000
    assert tried["stepped"] > 100
