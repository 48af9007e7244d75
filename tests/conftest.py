from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
# A shell ignores interrupts in what it runs in the background, and programs started by tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption(
        "--gpu-branches",
        action="store_true",
        help="let the package take its branches for a GPU, in every test that can",
    )
    parser.addoption("--goldens", default=str(ROOT / "tests" / "goldens"), help="folder of golden cases to check")


def pytest_generate_tests(metafunc):
    """Golden cases are discovered from what the folder holds."""
    import golden_cases

    kind = getattr(metafunc.function, "golden_kind", None)
    if kind is not None:
        cases = golden_cases.discover(Path(metafunc.config.getoption("--goldens")), kind)
        metafunc.parametrize("case", cases, ids=[golden_cases.case_id(c) for c in cases])


@pytest.fixture
def gpu_branches(monkeypatch):
    """The package takes its branches for a GPU, which MLX's CPU backend computes; types are asked for where float32 is meant."""
    from moshi_mlx.machine import device

    monkeypatch.setattr(device, "on_gpu", lambda: True)


@pytest.fixture(autouse=True)
def _device(request):
    from moshi_mlx.machine import device

    forced = request.config.getoption("--gpu-branches")
    cpu_only = request.node.get_closest_marker("cpu_only")
    if cpu_only is not None and (forced or device.on_gpu()):
        pytest.skip(f"on the CPU only: {cpu_only.args[0]}")
    if forced:
        request.getfixturevalue("gpu_branches")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """A complete small checkpoint with random weights, bfloat16."""
    from random_checkpoint import write

    folder = tmp_path_factory.mktemp("tiny")
    write(folder, "tiny", None, seed=1)
    return folder


@pytest.fixture
def tiny_copy(tiny_checkpoint, tmp_path) -> Path:
    """A copy of it that a test may damage."""
    import shutil

    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


@pytest.fixture
def question() -> Path:
    """A spoken question, 6 s."""
    return ROOT / "examples" / "question.wav"


@pytest.fixture(scope="session")
def native(tmp_path_factory):
    """libmoshi and moshi-cli."""
    import native_cases

    return native_cases.built(tmp_path_factory)
