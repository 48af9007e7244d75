"""The library in `native/` built once per run, and folders for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.export import folder as export_folder
from moshi_mlx.export.plans import of_codec, of_model
from moshi_mlx.session import Session
from moshi_mlx.session.reply import Frame

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"


def configure(source: Path, build: Path, *options: str) -> None:
    """`cmake` over a source folder, with the MLX of this Python."""
    command = ["cmake", "-S", source, "-B", build, f"-DPython_EXECUTABLE={sys.executable}", *options]
    subprocess.run(command, check=True, capture_output=True, text=True)


def build(folder: Path, *targets: str) -> None:
    command = ["cmake", "--build", folder, "--parallel", "2", *(["--target", *targets] if targets else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "warning" not in done.stdout + done.stderr, done.stdout[-4000:]


def require_tools() -> None:
    """Skip, with the reason, where C++ cannot be built."""
    for tool, names in (("cmake", ["cmake"]), ("a C++ compiler", ["c++", "g++", "clang++"])):
        if not any(shutil.which(name) for name in names):
            pytest.skip(f"building native/ needs {tool}")


class Built:
    """A build of `native/`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.library = folder / ("libmoshi.dylib" if sys.platform == "darwin" else "libmoshi.so")
        self.cli = folder / "cli" / "moshi-cli"

    def run(
        self, model: Path, actions: list, sound: np.ndarray | None = None, **job
    ) -> tuple[dict, dict[str, np.ndarray]]:
        """What a program that uses the library says of `actions`, and the arrays that came of them."""
        scratch = self.folder / f"job-{os.getpid()}"
        scratch.mkdir(exist_ok=True)
        job = {
            "library": str(self.library),
            "models": [str(model)],
            "actions": actions,
            "out": str(scratch / "out.npz"),
            **job,
        }
        if sound is not None:
            np.save(scratch / "sound.npy", sound)
            job["sound"] = str(scratch / "sound.npy")
        program = [sys.executable, str(ROOT / "tests" / "native_program.py")]
        done = subprocess.run(program, input=json.dumps(job), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        answer = json.loads(done.stdout)
        if "error" in answer:
            return answer, {}
        with np.load(scratch / "out.npz") as out:
            return answer, dict(out)

    def talk(self, *arguments: str | Path, **options) -> subprocess.CompletedProcess:
        """`moshi-cli` with `arguments`."""
        pipes = {} if "stdout" in options else {"capture_output": True}
        return subprocess.run([str(self.cli), *map(str, arguments)], check=False, **pipes, **options)


_built: list[Built] = []


def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Built once per run. MOSHI_BUILD names a folder to build in that outlives the run."""
    require_tools()
    if not _built:
        own = os.environ.get("MOSHI_BUILD")
        folder = Path(own) if own else tmp_path_factory.mktemp("native")
        configure(NATIVE, folder)
        build(folder)
        _built.append(Built(folder))
    return _built[0]


def sound(frames: int, seed: int = 0) -> np.ndarray:
    """`[frames, 1920]`"""
    return (0.1 * np.random.default_rng(seed).standard_normal((frames, 1920))).astype(np.float32)


def export(loaded: checkpoints.Checkpoint, destination: Path, *, codec: bool = False, **options) -> Path:
    plan = of_codec(loaded.mimi, "test", None) if codec else of_model(loaded, **options)
    export_folder.write(plan, destination)
    return destination


def small_rings(monkeypatch: pytest.MonkeyPatch, first: int = 32) -> None:
    """Rings that grow within a short conversation."""
    monkeypatch.setattr("moshi_mlx.engine.step.FIRST_CAPACITY", first)


def export_small(loaded: checkpoints.Checkpoint, destination: Path) -> Path:
    """A folder whose rings go through 16 and 32 slots to the window."""
    with pytest.MonkeyPatch.context() as patch:
        small_rings(patch, 16)
        return export(loaded, destination)


def equal(answer: dict, arrays: dict[str, np.ndarray], frames: list[Frame]) -> None:
    """What the library gave is what a session gave, in every token and bit of sound."""
    assert "error" not in answer, answer
    assert len(arrays["tokens"]) == len(frames)
    np.testing.assert_array_equal(arrays["tokens"], np.array([[f.text_token, *f.codes] for f in frames]))
    np.testing.assert_array_equal(arrays["pcm"], np.stack([f.pcm for f in frames]))
    assert answer["texts"] == [f.text for f in frames]


def talk(session: Session, pcm: np.ndarray, change: Callable[[int], None] | None = None) -> list[Frame]:
    """A session's frames; `change(t)` is called before frame t."""
    frames = []
    for t, heard in enumerate(pcm):
        if change:
            change(t)
        frames.append(session.step(heard))
    return frames
