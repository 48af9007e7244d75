"""Ctrl-C while Python imports: a command ends at once, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from test_words import ROOT


@pytest.mark.parametrize("command", ["stt --list-devices", "local --demo", "models demo"])
def test_an_interrupt_while_python_imports(command):
    """From the moment our first line runs: no traceback, the exit status of an interrupt."""
    seen = set()
    for delay in (0.1, 0.2, 0.3, 0.5):
        p = subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", *f"moshi_mlx.{command}".split()],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        for line in p.stderr:
            # Our first module is there: from now on the package answers.
            if "moshi_mlx.errors" in line:
                break
        time.sleep(delay / 5)
        p.send_signal(signal.SIGINT)
        _, err = p.communicate(timeout=60)
        seen.add(p.returncode)
        assert "Traceback" not in err
        # When all is said and Python goes down, the signal itself ends it: the same number for a shell.
        assert p.returncode in (0, 1, 2, 130, -signal.SIGINT)
    assert 130 in seen


WATCH = """
import signal, sys
def told(event, args):
    if event == "import" and args[0].startswith("moshi_mlx."):
        print("import", args[0], getattr(signal.getsignal(signal.SIGINT), "__name__", None), file=sys.stderr, flush=True)
sys.addaudithook(told)
"""


@pytest.mark.parametrize(
    "command", ["stt -o x.doc x.wav", "models nothing", "local --steps 0", "run_tts", "convert no out"]
)
def test_an_interrupt_ends_it_at_once_while_anything_is_imported(tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    run = subprocess.run(
        [sys.executable, "-m", *f"moshi_mlx.{command}".split()], env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    seen = [line.split()[1:] for line in run.stderr.splitlines() if line.startswith("import ")]
    names = [name for name, _ in seen]
    assert names[0] == "moshi_mlx.errors"
    assert len(names) > 20
    assert {handler for _, handler in seen[1:]} == {"quit_at_once"}, seen


def test_python_s_own_interrupt_comes_back_when_all_is_imported():
    """Before, one that falls into a callback of Python's imports would be swallowed, with a traceback."""
    code = """
import signal
from moshi_mlx import commands, errors
def main(argv):
    at = [signal.getsignal(signal.SIGINT)]
    with commands.importing():
        at.append(signal.getsignal(signal.SIGINT))
    at.append(signal.getsignal(signal.SIGINT))
    print(*(handler.__name__ for handler in at))
signal.signal(signal.SIGINT, errors.quit_at_once)
commands.run(main)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.stdout.split() == ["quit_at_once", "quit_at_once", "default_int_handler"], run.stderr
