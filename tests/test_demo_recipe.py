"""The recipe of the demo models is a command like the others, and makes models that the package runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moshi_mlx import checkpoint

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "examples.train_demo")
# Five steps of everything, and hardly any data; what Moshi itself says is always all of it.
LITTLE = (
    *("--speakers", "8", "--left-out-speakers", "8", "--sentences", "126", "--dialogues", "10", "--talks", "10"),
    *("--readings", "20", "--channels", "1", "--scale", "0.001", "--trials", "1", "--device", "cpu"),
)
MODELS = {"demo": "moshi", "demo-left-out": "moshi", "demo-stt": "stt", "demo-stt-left-out": "stt", "demo-tts": "tts"}


def recipe(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def fails(code: int, *arguments: str, **environment: str) -> str:
    """The last line of what is said."""
    done = recipe(*arguments, **environment)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def without_torch(tmp_path) -> dict[str, str]:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')\n")
    return {"PYTHONPATH": str(tmp_path)}


def test_help_and_mistakes_need_no_packages(tmp_path, without_torch):
    helped = recipe("--help", **without_torch)
    assert helped.returncode == 0 and "--go-on-from" in helped.stdout
    out = ("--out", str(tmp_path / "run"))
    assert "'0'" in fails(2, *out, "--speakers", "0", **without_torch)
    assert "'nan'" in fails(2, *out, "--seconds", "nan", **without_torch)
    assert "no folder" in fails(1, *out, "--codec-from", str(tmp_path / "none"), **without_torch)
    both = ("--codec-from", str(tmp_path), "--go-on-from", str(tmp_path))
    assert "leave out --codec-from" in fails(1, *out, *both, **without_torch)
    assert not (tmp_path / "run").exists()


def test_missing_package_is_named_with_the_way_to_install_it(tmp_path, without_torch):
    said = fails(1, "--out", str(tmp_path / "run"), **without_torch)
    assert "needs torch" in said and "requirements.txt" in said


@pytest.mark.parametrize(
    ("stage", "said"),
    [("codec", "stage `takes` first"), ("dialogues", "mimi.json"), ("lm", "heard.npz"), ("evaluate", "no weights")],
)
def test_stage_before_its_turn_says_what_is_missing(tmp_path, stage, said):
    pytest.importorskip("torch")
    assert said in fails(1, "--out", str(tmp_path), "--stage", stage, "--device", "cpu")


@pytest.mark.slow
def test_whole_recipe_in_one_go(tmp_path):
    """Interrupted once while it synthesises, and given again: the five models are whole checkpoints, measured."""
    for package in ("torch", "pystoi", "pocketsphinx", "soxr"):
        pytest.importorskip(package)
    command, run = [*COMMAND, "--out", str(tmp_path), "--seed", "6", *LITTLE], tmp_path / "model"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as begun:
        until = time.monotonic() + 120
        while not (made := sorted((tmp_path / "work" / "takes").glob("*/[0-9]*[0-9].npy"))):
            assert begun.poll() is None and time.monotonic() < until
            time.sleep(0.2)
        os.killpg(begun.pid, signal.SIGINT)
        said = begun.communicate(timeout=60)[1]
    assert begun.returncode == 130 and said.strip() == "interrupted"
    times = {path: path.stat().st_mtime_ns for path in made}

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in made} == times
    for name, kind in MODELS.items():
        assert json.loads((run / name / "config.json").read_text())["model_type"] == kind
        checkpoint.load(run / name)
    report = {path.name: json.loads(path.read_text()) for path in (tmp_path / "report").iterdir()}
    assert sorted(report) == [
        *(
            "demo-held-out.json",
            "demo-left-out.json",
            "demo-stt-held-out.json",
            "demo-stt-left-out.json",
            "demo-tts.json",
        )
    ]
    for side in ("held-out", "left-out"):
        measured = report[f"demo-{side}.json"]
        assert measured["codec"] and measured["interruptions"]["cases"] == 2
        assert {kind["count"] for kind in measured["dialogue"]["kinds"].values()} == {1}
