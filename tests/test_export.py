"""`python -m moshi_mlx.export`: what a folder holds, and what Python makes of it. `test_native*.py` run it without Python."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from native_cases import ROOT, export, export_small, small_rings, sound, talk
from random_checkpoint import write as write_checkpoint

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, OutputError
from moshi_mlx.export import __main__ as command
from moshi_mlx.export import folder as folders
from moshi_mlx.export.exported import Exported, ExportedSession
from moshi_mlx.export.plans import of_model
from moshi_mlx.export.sampler import InputSampler
from moshi_mlx.modules.sampling import Sampler, gumbel
from moshi_mlx.session import Session

QUESTION = ROOT / "tests" / "goldens" / "system" / "question_a"
DEMO = ROOT / "moshi_mlx" / "demo"


@pytest.fixture(scope="module")
def loaded():
    return checkpoints.load(QUESTION)


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    return export_small(loaded, tmp_path_factory.mktemp("export") / "out")


def test_the_folder_is_the_session(loaded, folder, monkeypatch):
    """Tokens, sound, text, and in the end every array of the state, through rings of 16, 32 and 40 slots."""
    small_rings(monkeypatch, 16)
    ours, theirs = ExportedSession.load(folder, seed=7), Session(loaded, seed=7)
    assert (ours.frame_size, ours.sample_rate) == (1920, 24000)
    for frame, expected in zip(talk(ours, sound(60)), talk(theirs, sound(60)), strict=True):
        np.testing.assert_array_equal(frame.pcm, expected.pcm)
        np.testing.assert_array_equal(frame.codes, expected.codes)
        assert (frame.text, frame.text_token, frame.index) == (expected.text, expected.text_token, expected.index)
    expected, state = dict(tree_flatten(theirs.state)), ours.state
    assert expected.keys() == state.keys()
    assert all(mx.array_equal(expected[name], state[name]) for name in state)
    # A value to go back to.
    first = [f.codes for f in talk(ours, sound(5))]
    ours.state = state
    np.testing.assert_array_equal([f.codes for f in talk(ours, sound(5))], first)
    ours.reset(3)
    assert ours.frames == 0


def test_sampling_as_inputs():
    """Every temperature and top-k draws what the sampler with these numbers draws."""
    logits = 3 * mx.random.normal((1, 2000), key=mx.random.key(1))
    sampler = InputSampler(2000, 0.8, 250)
    for step in range(20):
        noise = gumbel(mx.array([5], mx.uint32), mx.array(step), 2000)
        for temp in (0.0, 0.3, 1.0, 7.5):
            for top_k in (0, 1, 3, 250, 512):
                sampler.inputs = {"temp": mx.array(temp, mx.float32), "top_k": mx.array(top_k, mx.int32)}
                expected = Sampler(temp=temp, top_p=0, top_k=top_k).choose(logits, noise)
                assert sampler.choose(logits, noise).item() == expected.item()


def test_sampling_is_checked(folder):
    session = ExportedSession.load(folder)
    with pytest.raises(InputError, match="temp, temp_text, top_k and top_k_text, found heat"):
        session.set_sampling(heat=1.0)
    session.set_sampling(temp=0.0, top_k_text=10**9)
    session.step(sound(1)[0])


def test_only_what_is_read_and_once(loaded, folder):
    """No table beside the stack that it became part of, nothing twice, no weight hidden in a graph."""
    stored = WeightsFile(folder / "weights.safetensors")
    names = {name.removeprefix("w.") for name in stored}
    assert not any(name.startswith(("lm.text_emb.", "lm.audio_embs.")) for name in names)
    assert "lm.tables.weight" in names
    assert "mimi.quantizer.rvq_first.half_norms.0" in names
    tables = {
        name: loaded.lm.step_weights().arrays()[name.removeprefix("lm.")] for name in names if name.startswith("lm.")
    }
    assert all(stored[f"w.{name}"].nbytes == array.nbytes for name, array in tables.items())
    held = sum(a.nbytes for part in (loaded.lm, loaded.mimi) for a in part.step_weights().arrays().values())
    assert stored.nbytes < held
    sizes = {f.name: f.stat().st_size for f in folder.iterdir()}
    assert sizes["frame.mlxfn"] < 300_000 * 3
    # A fresh state: zeros are not stored.
    assert sizes["start.safetensors"] < 400_000


def test_a_weight_that_nobody_names_is_noticed(loaded, monkeypatch):
    """What would be captured as a constant, and be stored once for every function, is a defect that exporting finds."""
    monkeypatch.setattr(type(loaded.lm), "step_weights", lambda self: type(loaded.mimi).step_weights(loaded.mimi))
    with pytest.raises(AssertionError, match="a weight of the step is not named"):
        folders._without_unread(of_model(loaded))


def test_models_are_left_as_they_were(loaded):
    """Traces put other arrays in the places of the weights, and take them back, also when tracing fails."""
    weights = loaded.lm.step_weights()
    before = {name: id(array) for name, array in weights.arrays().items()}
    of_model(loaded)
    assert {name: id(array) for name, array in weights.arrays().items()} == before
    arrays = {name: mx.zeros_like(array) for name, array in weights.arrays().items()}
    with weights.replaced(arrays):
        assert all(array is arrays[name] for name, array in weights.arrays().items())
    with pytest.raises(ZeroDivisionError), weights.replaced(arrays):
        raise ZeroDivisionError
    assert {name: id(array) for name, array in weights.arrays().items()} == before


def test_manifest(loaded, folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["mlx"] == mx.__version__
    assert manifest["device"] == mx.default_device().type.name
    assert manifest["model"]["type"] == "moshi"
    assert manifest["audio"] == {"sample_rate": 24000, "frame_size": 1920, "frame_rate": 12.5, "stride": 2}
    assert manifest["rings"]["capacities"] == [16, 32, 40]
    assert manifest["conversation"]["model"] == loaded.fingerprint
    assert manifest["text"]["pieces"][:4] == [loaded.tokenizer.id_to_piece(i) for i in range(4)]
    assert len(manifest["text"]["kinds"]) == loaded.tokenizer.vocab_size()
    assert manifest["files"].keys() == {f.name for f in folder.iterdir()} - {"manifest.json"}
    assert all((folder / name).stat().st_size == file["bytes"] for name, file in manifest["files"].items())
    assert "Licence" in (folder / "README.md").read_text()


def test_command(tmp_path, capsys):
    """A path, a window bounded in seconds, sizes of the rings; --codec takes the codec alone."""
    out = tmp_path / "out"
    assert command.main([str(QUESTION), str(out), "--context", "1.6", "--capacities", "8,16"]) == 0
    assert json.loads((out / "manifest.json").read_text())["rings"]["capacities"] == [8, 16, 20]
    assert f"wrote {out}" in capsys.readouterr().err
    assert "python -m moshi_mlx.export" in (out / "README.md").read_text()
    assert command.main(["--model", str(QUESTION), str(tmp_path / "codec"), "--codec", "--codebooks", "4"]) == 0
    manifest = json.loads((tmp_path / "codec" / "manifest.json").read_text())
    assert manifest["functions"].keys() == {"encode", "decode"}
    assert manifest["tokens"]["codebooks"] == 4
    assert {p.name for p in tmp_path.iterdir()} == {"out", "codec"}


def test_refusals(tmp_path, loaded, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(OutputError, match="exists and is not empty"):
        command.main([str(QUESTION), str(tmp_path / "full")])
    with pytest.raises(OutputError, match="does not exist; make it first"):
        command.main([str(QUESTION), str(tmp_path / "no" / "out")])
    write_checkpoint(tmp_path / "tts", "tiny-tts", None, seed=1)
    with pytest.raises(ConfigError, match=r"a text-to-speech model; use python -m moshi_mlx\.run_tts"):
        command.main([str(tmp_path / "tts"), str(tmp_path / "out")])
    with pytest.raises(InputError, match="given as NAME=VALUE"):
        command.main([str(QUESTION), str(tmp_path / "out"), "--condition", "quality"])
    with pytest.raises(InputError, match="sizes of the rings should be 4 to 40"):
        command.main([str(QUESTION), str(tmp_path / "out"), "--capacities", "2,100"])
    with pytest.raises(InputError, match="takes no conditions"):
        command.main([str(QUESTION), str(tmp_path / "out"), "--condition", "description=good"])
    with pytest.raises(InputError, match="takes no voice"):
        command.main([str(QUESTION), str(tmp_path / "out"), "--voice", "NATF2"])
    with pytest.raises(InputError, match="codebooks, 99 were asked for"):
        command.main([str(QUESTION), str(tmp_path / "out"), "--codec", "--codebooks", "99"])
    for arguments, words in (
        ([str(QUESTION)], "expected MODEL DIR"),
        (["--demo", "a", "b"], "of which MODEL is given by an option already"),
        (["a", "b", "c"], "expected MODEL DIR"),
        (["a", "b", "--capacities", "x"], "'x' is not a list of whole numbers"),
        (["a", "b", "--codebooks", "4"], "--codebooks belongs to --codec"),
        (["a", "b", "--codec", "--voice", "anna"], "knows nothing of --voice"),
        (["a", "b", "--codec", "--kv-bits", "8"], "knows nothing of --kv-bits"),
        (["a", "b", "--codec", "-q", "4"], "knows nothing of --quantized"),
    ):
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert words in capsys.readouterr().err
    assert {p.name for p in tmp_path.iterdir()} == {"full", "tts"}


def test_no_bound_no_graph(tmp_path):
    write_checkpoint(tmp_path / "model", "tiny", None, seed=1)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "context": None}))
    with pytest.raises(InputError, match="has no bound, and a graph needs one: give --context"):
        of_model(checkpoints.load(tmp_path / "model"))


def test_whole_or_not_at_all(loaded, tmp_path, monkeypatch):
    """An export that fails on the way leaves nothing behind."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "_fingerprint", fail)
    with pytest.raises(OutputError, match="cannot be written: no space left on device"):
        export(loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_folders_for_other_machines(folder, tmp_path):
    good = json.loads((folder / "manifest.json").read_text())

    def made(**changes):
        (tmp_path / "manifest.json").write_text(json.dumps({**good, **changes}))
        return Exported(tmp_path)

    with pytest.raises(CheckpointError, match=r"written by MLX 0\.31\.0"):
        made(mlx="0.31.0")
    with pytest.raises(CheckpointError, match="written for the tpu"):
        made(device="tpu")
    with pytest.raises(CheckpointError, match="has the format 2, expected 1"):
        made(format=2)
    with pytest.raises(CheckpointError, match="is missing or not as long"):
        made()
    with pytest.raises(InputError, match="has the voices"):
        ExportedSession.load(folder, start="nobody")
