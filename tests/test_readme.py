"""What the README says is true: its commands parse, its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from moshi_mlx import run_inference

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PARSERS = {"moshi_mlx.run_inference": run_inference.parser}


def commands() -> list[str]:
    return re.findall(r"^    (python -m moshi_mlx\.\S+.*)$", README, re.MULTILINE)


def test_commands_are_found():
    assert len(commands()) >= 3


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    words = shlex.split(line, comments=True)
    PARSERS[words[2]]().parse_args(words[3:])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_python_snippets_run(tiny_checkpoint, capsys):
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code.replace("path/to/checkpoint", str(tiny_checkpoint)), "README.md", "exec"), {})
    assert "(1920,)" in capsys.readouterr().out


def test_linked_files_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
