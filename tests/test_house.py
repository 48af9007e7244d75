"""The house: every room can be entered first, nothing lies where it does not belong, and the door names its commands."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from moshi_mlx.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE = 400
MOST_AT_THE_TOP = 22


def modules() -> list[str]:
    """Every module of the package, as it is imported."""
    found = []
    for folder, prefix in (
        ("moshi_mlx", "moshi_mlx"),
        ("convert", "moshi_mlx.convert"),
        ("quantize", "moshi_mlx.quantize"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found.append(".".join([prefix, *(p for p in parts if p != "__init__")]))
    return [name for name in found if not name.endswith("__main__")]


def test_any_module_may_be_imported_first():
    """Each in a process that has imported nothing of ours, forked from one that holds only what takes long."""
    program = (
        "import importlib, os, sys\n"
        "import aiohttp.web, mlx.core, mlx.nn, numpy, rich.console, rich.progress, sentencepiece, soundfile, soxr\n"
        "failed = []\n"
        "for name in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try:\n"
        "            importlib.import_module(name)\n"
        "        except BaseException as e:\n"
        "            print(f'{name}: {type(e).__name__}: {e}', flush=True)\n"
        "            os._exit(1)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(child, 0)[1]:\n"
        "        failed.append(name)\n"
        "sys.exit(bool(failed))\n"
    )
    names = modules()
    assert len(names) > 100
    done = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["moshi_mlx.models.lm", "moshi_mlx.models.mimi", "moshi_mlx.checkpoint", "moshi_mlx.session"]
)
def test_what_is_handed_on_is_there(name):
    module = importlib.import_module(name)
    assert not hasattr(module, "nothing_of_this_name")
    with pytest.raises(AttributeError, match=f"{name}.*nothing"):
        module.nothing  # noqa: B018


def test_few_files_at_the_top_and_none_too_long():
    top = sorted(p.name for p in (ROOT / "moshi_mlx").glob("*.py"))
    assert len(top) <= MOST_AT_THE_TOP, top
    sizes = {
        str(p.relative_to(ROOT)): len(p.read_text().splitlines())
        for folder in ("moshi_mlx", "convert", "quantize")
        for p in (ROOT / folder).rglob("*.py")
    }
    assert {name: n for name, n in sizes.items() if n > LONGEST_FILE} == {}


def test_the_door_names_every_command():
    done = subprocess.run([sys.executable, "-m", "moshi_mlx"], capture_output=True, text=True, timeout=60, check=True)
    listed = [
        line.split()[2].removeprefix("moshi_mlx.") for line in done.stdout.splitlines() if line.startswith("python -m")
    ]
    assert listed == [*COMMANDS]
    runnable = set()
    for folder, prefix in (("moshi_mlx", ""), ("convert", "convert."), ("quantize", "quantize.")):
        for path in (ROOT / folder).rglob("*.py"):
            if '__name__ == "__main__"' in path.read_text():
                dotted = prefix + ".".join(path.relative_to(ROOT / folder).with_suffix("").parts)
                runnable.add(dotted.removesuffix(".__main__"))
    assert set(listed) == runnable - {"__main__"}
    assert "no command" in _refusal("locl")
    assert "python -m moshi_mlx.local" in _refusal("local")


def _refusal(word: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "moshi_mlx", word], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_and_refusals_import_nothing_that_takes_long(command):
    """What a command needs is imported when its arguments are right: MLX, and every library but Python's own."""
    program = (
        "import runpy, sys\n"
        "there = set(sys.modules)\n"
        "for argument in ('--help', '--no-such-argument'):\n"
        "    sys.argv = ['moshi_mlx', argument]\n"
        "    try: runpy.run_module(sys.orig_argv[-1], run_name='__main__', alter_sys=True)\n"
        "    except SystemExit: pass\n"
        "    for name in [n for n in sys.modules if n.startswith('moshi_mlx.')]: del sys.modules[name]\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - there}\n"
        "print(sorted(new - set(sys.stdlib_module_names) - {'moshi_mlx'}))\n"
    )
    name = f"moshi_mlx.{command}".rstrip(".")
    done = subprocess.run([sys.executable, "-c", program, name], capture_output=True, text=True, timeout=60, check=True)
    assert f"python -m {name}" in done.stdout
    assert "error: " in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_map_names_what_is_there():
    """docs/architecture.md: its files exist, every room is in its table, and what a row names is in that room."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "moshi_mlx"
    for name in re.findall(r"`([\w/]+\.py)`", page):
        assert "NAME" in name or (package / name).is_file() or (ROOT / name).is_file(), name
    listed = set()
    for cell, words in re.findall(r"^\| (`\w+/`(?:, `\w+/`)*) \| (.*?) \|", page, re.MULTILINE):
        rooms = [(ROOT if r in ("convert", "quantize") else package) / r for r in re.findall(r"`(\w+)/`", cell)]
        listed |= {room.name for room in rooms}
        source = "".join(path.read_text() for room in rooms for path in room.rglob("*.py"))
        for name in re.findall(r"`(\w+)/?`", words):
            found = any((room / name).exists() or (room / f"{name}.py").is_file() for room in rooms)
            assert found or re.search(rf"^(class|def) {name}\b", source, re.MULTILINE), (cell, name)
    assert listed == {p.parent.name for p in package.glob("*/__init__.py")} | {"convert", "quantize"}


def test_a_wheel_holds_the_package_and_its_data_alone(tmp_path):
    """Built without a network, from a copy: the demo is in it, tests are not, and setuptools has nothing to warn of."""
    tree = tmp_path / "tree"
    keep = ("moshi_mlx", "convert", "quantize", "pyproject.toml", "setup.py", "README.md", "LICENSE")
    for name in keep:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    program = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", program, str(tmp_path)],
        capture_output=True, text=True, timeout=300, check=False, cwd=tree, env={**os.environ, "PYTHONWARNINGS": "default"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout + done.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = wheel.namelist()
        metadata = wheel.read(next(n for n in names if n.endswith("METADATA"))).decode()
    for name in (
        "demo/model.safetensors",
        "demo_stt/model.q8.safetensors",
        "demo_tts/model.safetensors",
        "demo_tts/voices/ben.demo@1.safetensors",
    ):
        assert f"moshi_mlx/{name}" in names
    assert "moshi_mlx/convert/command.py" in names
    assert [n for n in names if "test" in n.lower()] == []
    for target in _links(metadata):
        assert target.startswith(("http://", "https://", "#", "mailto:")), target


def _links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", text)
