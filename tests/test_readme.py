"""What the README says is true: its commands parse, its Python runs, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import moshi_mlx.convert.__main__
import moshi_mlx.quantize.__main__
import pytest

import moshi_mlx.models.__main__
from moshi_mlx import local, local_web, run_helium, run_inference, run_tts, stt
from moshi_mlx.bench import __main__ as bench

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PARSERS = {
    "moshi_mlx.local": local.parser,
    "moshi_mlx.local_web": local_web.parser,
    "moshi_mlx.run_inference": run_inference.parser,
    "moshi_mlx.stt": stt.parser,
    "moshi_mlx.run_tts": run_tts.parser,
    "moshi_mlx.run_helium": run_helium.parser,
    "moshi_mlx.models": moshi_mlx.models.__main__.parser,
    "moshi_mlx.convert": moshi_mlx.convert.__main__.parser,
    "moshi_mlx.quantize": moshi_mlx.quantize.__main__.parser,
    "moshi_mlx.bench": bench.parser,
}


def commands() -> list[str]:
    return re.findall(r"^    (python -m moshi_mlx\.\S+.*)$", README, re.MULTILINE)


def test_every_command_is_shown():
    assert {shlex.split(line, comments=True)[2] for line in commands()} == set(PARSERS)


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    words = shlex.split(line, comments=True)
    PARSERS[words[2]]().parse_args(words[3:])


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"\bmake (\w+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_extras_exist():
    declared = (ROOT / "pyproject.toml").read_text()
    for extra in re.findall(r"pip install '\.\[(\w+)\]'", README):
        assert re.search(rf"^{extra} = ", declared, re.MULTILINE), extra


def test_python_snippets_run(tiny_checkpoint, capsys):
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(code.replace("path/to/checkpoint", str(tiny_checkpoint)), "README.md", "exec"), {})
    assert "(1920,)" in capsys.readouterr().out


def test_linked_files_exist():
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
