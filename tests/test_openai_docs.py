"""docs/openai.md is true: its programs and commands run, its numbers are those of the server, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("openai")
from openai_server import OpenAI, talking
from speech_server import hearing, speaking

from moshi_mlx import serve
from moshi_mlx.server import reading, recordings
from moshi_mlx.server.openai import encoders, formats, speech
from moshi_mlx.server.openai.realtime import socket as sockets
from moshi_mlx.server.services import Services

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "openai.md").read_text()
ADDRESS = "http://localhost:8998"


@pytest.fixture(scope="module")
def server():
    with OpenAI(Services(talking(), hearing(), speaking())) as s:
        yield s


@pytest.mark.parametrize("number", range(2))
def test_python_runs(server, number, tmp_path, monkeypatch, capsys, question):
    """The talk lasts two seconds."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(question, "question.wav")
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[number]
    exec(
        compile(code.replace(ADDRESS, server.origin).replace("10))", "2))"), "openai.md", "exec"), {"__name__": "page"}
    )
    assert len(capsys.readouterr().out) > 4
    if number:
        assert soundfile.info("answer.wav").frames == 25 * 1920
    else:
        assert soundfile.info("morning.mp3").samplerate == 24000
    server.wait_free()


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_commands_run(server, tmp_path):
    shell = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1].replace(ADDRESS, server.origin)
    done = subprocess.run(
        ["sh", "-e", "-c", shell], capture_output=True, text=True, timeout=120, check=True, cwd=tmp_path
    )
    assert "tiny-tts" in done.stdout
    assert "-->" in done.stdout
    assert (tmp_path / "morning.wav").read_bytes().startswith(b"RIFF")
    server.wait_free()


def test_the_server_starts_like_that():
    (line,) = re.findall(r"^    (python -m moshi_mlx\.serve.*)$", PAGE, re.MULTILINE)
    serve.parser().parse_args(shlex.split(line)[3:])
    known = {o for action in serve.parser()._actions for o in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known


def test_numbers_and_names_are_those_of_the_server():
    assert f"Up to {recordings.LARGEST >> 20} MiB" in PAGE
    assert f"Up to {speech.LONGEST_INPUT:,} characters" in PAGE
    assert f"no row within {reading.ROW_SECONDS:g} s" in PAGE
    assert f"sends nothing for {sockets.SILENT_SECONDS:g} s" in PAGE
    for row, names in (("audio/speech", encoders.FORMATS), ("audio/transcriptions", formats.NAMES)):
        (line,) = re.findall(rf"^\| `POST /v1/{row}` .*$", PAGE, re.MULTILINE)
        assert all(f"`{name}`" in line for name in names)


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http|#)([^)#]+)", PAGE):
        assert (DOCS / target).exists(), target
    anchors = {h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)$", PAGE, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) <= anchors
