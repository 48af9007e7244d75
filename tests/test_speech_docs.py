"""What the pages about speech say is true: commands parse, Python runs, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from speech_toys import _tidy, checkpoint  # noqa: F401

from moshi_mlx import run_tts, stt

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ["stt.md", "tts.md", "models/stt.md", "models/tts.md"]
PARSERS = {"moshi_mlx.stt": stt.parser, "moshi_mlx.run_tts": run_tts.parser}


def commands() -> list[str]:
    text = "".join((DOCS / page).read_text() for page in PAGES)
    return re.findall(r"^    (python -m moshi_mlx\.(?:stt|run_tts)\b.*)$", text, re.MULTILINE)


@pytest.mark.parametrize("line", commands())
def test_commands_parse(line):
    words = shlex.split(line, comments=True)
    PARSERS[words[2]]().parse_args(words[3:])


def test_options_exist():
    for page, parser in (("stt.md", stt.parser), ("tts.md", run_tts.parser)):
        known = {o for action in parser()._actions for o in action.option_strings}
        for option in re.findall(r"`(--[a-z-]+)", (DOCS / page).read_text()):
            assert option in known, f"{page}: {option}"


@pytest.mark.parametrize("page", ["stt.md", "tts.md"])
def test_python_runs(page, question, monkeypatch, capsys):
    monkeypatch.chdir(question.parent)
    for code in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        for kind in ("stt", "tts"):
            code = code.replace(f"path/to/{kind}", str(checkpoint(f"tiny-{kind}")))
        exec(compile(code, page, "exec"), {})
    assert "Word(" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", (DOCS / page).read_text()):
        assert ((DOCS / page).parent / link).exists(), link
