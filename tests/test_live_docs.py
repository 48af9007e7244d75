"""What the pages about talking and embedding say is true: commands parse, options and keys exist, Python runs, links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from moshi_mlx import local
from moshi_mlx.audio import capture, echo, playback, streams
from moshi_mlx.defaults import ECHO_MODES
from moshi_mlx.live.figures import Status
from moshi_mlx.live.keys import KEYS
from moshi_mlx.session.thread import CALLS_WAITING

DOCS = Path(__file__).resolve().parent.parent / "docs"
LIVE, EMBEDDING = ((DOCS / name).read_text() for name in ("live.md", "embedding.md"))
COMMANDS = re.findall(r"^    (python -m moshi_mlx\.local\b.*)$", LIVE, re.MULTILINE)


def test_commands_are_found():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line):
    words = shlex.split(line, comments=True)
    local.parser().parse_args(words[3:])


def test_options_exist():
    known = {o for action in local.parser()._actions for o in action.option_strings}
    for option in re.findall(r"`(--[a-z-]+)", LIVE):
        assert option in known, option


def test_keys_modes_and_figures_are_those_of_the_program():
    assert dict(re.findall(r"^\| `(\w)` \| (\w+)", LIVE, re.MULTILINE)) == KEYS
    assert sorted(re.findall(r"^\| `(aec|mute|off)` \|", LIVE, re.MULTILINE)) == sorted(ECHO_MODES)
    example = re.search(r'^    (\{"event": "status".*?\n.*?\n.*?\})$', LIVE, re.MULTILINE | re.DOTALL)
    assert set(json.loads(example[1])) == {"event", *Status().figures()}


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (r"`--max-lag` ms \((\d+)\)", 1000 * capture.MAX_LAG),
        (r"`--device-latency MS` \((\d+)\)", 1000 * streams.Wanted().latency),
        (r"grows by (\d+) ms, to \d+ at most", 1000 * playback.HOLD_STEP),
        (r"grows by \d+ ms, to (\d+) at most", 1000 * playback.MAX_HOLD),
        (r"and\s(\d+) ms is never exceeded", 1000 * playback.MAX_SECONDS),
        (r"fades out within (\d+) ms", 1000 * playback.FADE_SECONDS),
        (r"while it speaks and ([\d.]+) s after", echo.GATE_SECONDS),
    ],
)
def test_figures_in_the_text(said, value):
    assert float(re.search(said, LIVE)[1]) == pytest.approx(value)


def test_the_hold_shrinks_as_told():
    assert "gives back a quarter of what it has grown" in LIVE
    assert playback.HOLD_GIVEN_BACK == 0.25


def test_figures_of_embedding():
    assert int(re.search(r"At most (\d+) may wait", EMBEDDING)[1]) == CALLS_WAITING
    assert int(re.search(r"at most (\d+) ms of it", EMBEDDING)[1]) == 1000 * capture.MAX_LAG


def test_python_runs(tiny_checkpoint, question, tmp_path, monkeypatch, capsys):
    """The snippets of the page, one after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(question, "question.wav")
    names: dict = {}
    snippets = re.findall(r"```python\n(.*?)```", EMBEDDING, re.DOTALL)
    assert len(snippets) == 4
    for code in snippets:
        exec(compile(code.replace("path/to/checkpoint", str(tiny_checkpoint)), "embedding.md", "exec"), names)
    said = capsys.readouterr().out
    assert "(1920,)" in said
    assert "'frames': 25" in said
    assert (tmp_path / "reply.wav").exists()


@pytest.mark.parametrize("page", ["live.md", "embedding.md"])
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", (DOCS / page).read_text()):
        assert (DOCS / link).exists(), link
