"""libmoshi against `Session`: the same tokens and the same bits of sound, through rings that grow and wrap."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import soundfile
from native_cases import ROOT, equal, export, export_small, small_rings, sound, talk

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx import run_inference
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session
from moshi_mlx.session.conversation_file import load_conversation, save_conversation

DEMO = ROOT / "moshi_mlx" / "demo"
QUESTION = ROOT / "tests" / "goldens" / "system" / "question_a"
SHORT = 70
# Frames that the demo looks back here, so that short conversations wrap.
WINDOW = 50


@pytest.fixture(scope="module")
def demo():
    return checkpoints.load(DEMO, context=WINDOW)


@pytest.fixture(scope="module")
def question_a():
    return checkpoints.load(QUESTION)


@pytest.fixture(scope="module")
def folders(demo, question_a, tmp_path_factory):
    """Windows of 50 and 40 frames."""
    place = tmp_path_factory.mktemp("folders")
    return {"demo": export_small(demo, place / "demo"), "question_a": export_small(question_a, place / "question_a")}


@pytest.fixture
def rings(monkeypatch):
    small_rings(monkeypatch, 16)


@pytest.mark.parametrize("frames", [SHORT, pytest.param(500, marks=pytest.mark.slow)])
def test_the_demo(native, demo, folders, rings, frames):
    """Sampled, the sampling changed on the way."""
    pcm = sound(frames)
    answer, arrays = native.run(
        folders["demo"],
        [
            ["step", 15], ["sampling", {"temp": 0.9, "top_k": 0}], ["step", 15], ["sampling", {"temp": 0.0, "temp_text": 0.7}],
            ["step", 10], ["sampling", {"temp": 0.6, "top_k": 7, "temp_text": 1.2, "top_k_text": 3}], ["step", frames - 40],
        ],
        pcm, options={"seed": 11},
    )  # fmt: skip
    session = Session(demo, seed=11)
    frame_step = session.frame_step.step
    defaults = demo.config.generation

    def sampler(temp=defaults.temp, top_k=defaults.top_k):
        return Sampler(temp=temp, top_p=0, top_k=top_k)

    def text(temp=defaults.temp_text, top_k=defaults.top_k_text):
        return Sampler(temp=temp, top_p=0, top_k=top_k)

    plan = {15: (text(), sampler(0.9, 0)), 30: (text(0.7), sampler(0.0)), 40: (text(1.2, 3), sampler(0.6, 7))}
    replies = []
    for t, heard in enumerate(pcm):
        if t in plan:
            # A session has its sampling for life: another one goes on where it was.
            following = Session(demo, seed=11, text_sampler=plan[t][0], audio_sampler=plan[t][1])
            following.state = session.state
            session = following
        replies.append(session.step(heard))
    assert frame_step.capacities(1) == [16, 32, 50]
    equal(answer, arrays, replies)
    assert answer["index"] == list(range(frames))


@pytest.mark.parametrize("frames", [SHORT, pytest.param(500, marks=pytest.mark.slow)])
def test_the_published_architecture(native, question_a, folders, rings, frames):
    """Greedy, as the golden was made: window 40, wrapped several times."""
    pcm = sound(frames, seed=2)
    answer, arrays = native.run(folders["question_a"], [["step", frames]], pcm, options={"temp": 0.0, "temp_text": 0.0})
    greedy = Sampler(temp=0)
    equal(answer, arrays, talk(Session(question_a, text_sampler=greedy, audio_sampler=greedy), pcm))


@pytest.mark.parametrize("frames", [40, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("bits", [8, 4])
def test_packed_keys_and_values(native, demo, rings, tmp_path, bits, frames):
    folder = export(demo, tmp_path / "out", kv_bits=bits)
    pcm = sound(frames)
    answer, arrays = native.run(folder, [["step", frames]], pcm, options={"seed": 3})
    equal(answer, arrays, talk(Session(demo, seed=3, kv_bits=bits), pcm))


@pytest.mark.parametrize("frames", [24, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("left_packed", [False, True])
def test_packed_weights(native, rings, tmp_path, monkeypatch, left_packed, frames):
    """4-bit weights, unpacked as the CPU backend likes them, or left packed as a large model's are."""
    if left_packed:
        monkeypatch.setattr("moshi_mlx.machine.cpu.layout.UNPACK_BYTES", 0)
    subprocess.run(
        [sys.executable, "-m", "moshi_mlx.quantize", DEMO, tmp_path / "q4", "-q", "4"], check=True, capture_output=True
    )
    loaded = checkpoints.load(tmp_path / "q4", context=WINDOW)
    folder = export(loaded, tmp_path / "out")
    kinds = {
        tensor.dtype
        for name, tensor in WeightsFile(folder / "weights.safetensors").items()
        if name.startswith("w.lm.transformer.")
    }
    assert ("U32" in kinds) == left_packed
    pcm = sound(frames)
    answer, arrays = native.run(folder, [["step", frames]], pcm, options={"seed": 3})
    equal(answer, arrays, talk(Session(loaded, seed=3), pcm))


def test_a_conversation_goes_on_on_the_other_side(native, demo, folders, rings, tmp_path):
    """Saved by the library, taken up by Python, and back, in rings that are still to grow and in wrapped ones."""
    pcm = sound(70)
    whole = talk(Session(demo, seed=5), pcm)
    saved = str(tmp_path / "talk.safetensors")
    answer, arrays = native.run(folders["demo"], [["step", 20], ["save", saved]], pcm, options={"seed": 5})
    equal(answer, arrays, whole[:20])
    session = Session(demo, seed=99)
    load_conversation(session, saved)
    middle = [session.step(p) for p in pcm[20:60]]
    save_conversation(session, saved)
    answer, arrays = native.run(folders["demo"], [["restore", saved], ["step", 10]], pcm[60:], options={"seed": 1})
    np.testing.assert_array_equal([f.codes for f in middle], [f.codes for f in whole[20:60]])
    np.testing.assert_array_equal(np.stack([f.pcm for f in middle]), np.stack([f.pcm for f in whole[20:60]]))
    equal(answer, arrays, whole[60:])
    assert answer["index"] == list(range(60, 70))


def test_begin_again(native, folders):
    pcm, warm = sound(20), {"temp": 3.0, "top_k": 0}
    actions = [["step", 20], ["reset", {"seed": 4, **warm}], ["step", 20], ["reset", warm], ["step", 20]]
    answer, arrays = native.run(folders["demo"], actions, pcm, options=warm)
    tokens, heard = arrays["tokens"].reshape(3, 20, -1), arrays["pcm"].reshape(3, 20, -1)
    np.testing.assert_array_equal(tokens[0], tokens[2])
    np.testing.assert_array_equal(heard[0], heard[2])
    assert (tokens[0] != tokens[1]).any()
    assert answer["index"] == [*range(20)] * 3


def test_command(native, tmp_path):
    """`moshi-cli` writes what `run_inference` writes, to the byte, and without Python."""
    recording, _ = soundfile.read(DEMO / "prompts" / "sum.flac", dtype="int16")
    soundfile.write(tmp_path / "in.wav", recording, 24000, subtype="PCM_16")
    folder = export(checkpoints.load(DEMO), tmp_path / "demo")
    run_inference.main(
        [
            str(tmp_path / "in.wav"),
            str(tmp_path / "python.wav"),
            "--model",
            str(DEMO),
            "--tail",
            "2.5",
            "--text",
            str(tmp_path / "text"),
        ]
    )
    expected = (tmp_path / "python.wav").read_bytes()
    done = native.talk(folder, tmp_path / "in.wav", tmp_path / "native.wav", "--tail", "2.5")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "native.wav").read_bytes() == expected
    assert done.stdout.decode().strip() == (tmp_path / "text").read_text().strip() == "three plus four is seven"
    # The same through pipes.
    done = native.talk(folder, "-", "-", "--tail", "2.5", input=recording.tobytes())
    assert done.returncode == 0, done.stderr
    assert done.stdout == expected[44:]
    libraries = subprocess.run(
        ["ldd" if sys.platform == "linux" else "otool", *([] if sys.platform == "linux" else ["-L"]), native.cli],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "libmlx" in libraries.stdout
    assert "libpython" not in libraries.stdout
