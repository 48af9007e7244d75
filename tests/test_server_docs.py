"""docs/server.md and docs/spec/speech-sockets.md are true: commands run, numbers are the server's, tables are computed as told."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from speech_server import SpeechServer, hearing, speaking
from speech_toys import _tidy  # noqa: F401

pytest.importorskip("sphn")
import serving

from moshi_mlx import serve
from moshi_mlx.engine import model_thread
from moshi_mlx.machine.serving import MOST_ROWS
from moshi_mlx.server import pauses, recordings
from moshi_mlx.server.kyutai import hear, line, messages, posts, speak
from moshi_mlx.server.services import Services
from moshi_mlx.speech_to_text import rows as stt_rows

DOCS = Path(__file__).resolve().parent.parent / "docs"
SERVER, SOCKETS = (DOCS / "server.md").read_text(), (DOCS / "spec" / "speech-sockets.md").read_text()


def test_commands_parse():
    lines = re.findall(r"^    (python -m moshi_mlx\.serve.*)$", SERVER, re.MULTILINE)
    assert len(lines) >= 5
    for text in lines:
        serve.parser().parse_args(shlex.split(text, comments=True)[3:])


def test_every_flag_is_told_here_or_with_the_page():
    told = set(re.findall(r"--[a-z-]+", SERVER + (DOCS / "web.md").read_text()))
    flags = {a.option_strings[-1] for a in serve.parser()._actions}
    assert flags - told == {"--help", "--quantized"}


def test_the_examples_run(tmp_path):
    """A text said, and its sound written down."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = re.findall(r"^    (curl .*)$", SERVER, re.MULTILINE)
    assert len(commands) == 4
    said = []
    with SpeechServer(Services(stt=hearing(rows=1), tts=speaking(1))) as s:
        for command in commands:
            words = shlex.split(command.replace("localhost:8998", f"localhost:{s.port}"))
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0
            said.append(done.stdout)
    assert (tmp_path / "hello.wav").read_bytes()[:4] == b"RIFF"
    assert said[1].startswith("[")
    assert len((tmp_path / "hello.mp3").read_bytes()) > 500
    assert said[3].startswith('{"text": ')


def test_the_table_is_what_the_function_says():
    assert "\n".join(serving.table()) in SERVER
    assert f"{MOST_ROWS} at most" in SERVER


@pytest.mark.parametrize("page", ["server.md", "spec/speech-sockets.md"])
def test_links_lead_somewhere(page):
    path = DOCS / page
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize(
    ("said", "value"),
    [
        (r"in its place after ([\d.]+) s", line.ROW_SECONDS),
        (r"Flush: (\d+) frames", hear.FLUSH_FRAMES),
        (r"come within ([\d.]+) s", hear.FLUSH_WITHIN),
        (r"no more than ([\d.]+) s of sound", hear.LIVE_BACKLOG / hear.RATE),
        (r"further behind than ([\d.]+) s", hear.FLUSHED_SECONDS),
        (r"sends nothing for ([\d.]+) s", hear.MARKER_SECONDS),
        (r"(\d+) s of sound may wait", hear.BACKLOG / hear.RATE),
        (r"pings after (\d+) s", line.PING_SECONDS),
        (r"answers nothing for (\d+) s", line.Line.silent),
        (r"no message for (\d+) s", line.Line.idle),
        (r"answers no ping for (\d+) s", speak.SpeakLine.silent),
        (r"leaves (\d+) results unread", stt_rows.OUTPUT_ITEMS),
        (r"up to (\d+) MiB", recordings.LARGEST >> 20),
        (r"waits up to (\d+) s for a row", posts.ROW_SECONDS),
    ],
)
def test_numbers_of_the_sockets(said, value):
    assert float(re.search(said, SOCKETS)[1]) == pytest.approx(value)


def test_numbers_of_the_server():
    assert re.search(
        rf"messages of {messages.LARGEST_MESSAGE >> 20} MiB, clips of {posts.LARGEST_CLIP >> 20} MiB", SERVER
    )
    assert "passed over more than twice on end" in SERVER.replace("\n", " ") and model_thread.TURNS_PASSED == 2
    assert "0.25, 0.5, 0.75 and 1.5 s" in SOCKETS and pauses.QUIET == (0.25, 0.5, 0.75, 1.5)
    assert "four times as loud" in SOCKETS and pauses.ABOVE_FLOOR == 4.0


def test_every_message_is_told():
    """All that the handlers understand and send."""
    source = "".join(Path(m.__file__).read_text() for m in (hear, speak, messages))
    known = set(re.findall(r'kind [!=]= "(\w+)"', source)) | set(re.findall(r'"type": "(\w+)"', source))
    assert {"Audio", "OggOpus", "Marker", "Step", "Word", "EndWord", "Text", "Voice", "Eos", "Ready"} <= known
    assert all(f"`{name}" in SOCKETS for name in known)
    assert all(name in SOCKETS for name in speak.FORMATS)
