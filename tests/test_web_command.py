"""`python -m moshi_mlx.local_web`, end to end in its own process: what it prints, opens, refuses, records and ends with."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
import soundfile
from test_web_guard import certificate
from web_server import PATIENCE, Client, tone

pytest.importorskip("sphn")
from moshi_mlx import local_web
from moshi_mlx.commands import local_web as web_work
from moshi_mlx.commands.telling import say as say_aloud
from moshi_mlx.errors import InputError, MoshiError
from moshi_mlx.server import hosting

ROOT = Path(__file__).resolve().parent.parent


class Program:
    """The command; `lines` are what it has said, until it invites."""

    def __init__(self, *args, command="local_web", **env):
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"moshi_mlx.{command}", "--port", "0", *map(str, args)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **env},
        )  # fmt: skip
        self.lines: list[str] = []
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("Ctrl-C"):
                break
        else:
            raise AssertionError(self.lines)
        self.links = [line.removeprefix("talk at ") for line in self.lines if line.startswith("talk at ")]
        self.port = int(re.search(r":(\d+)", self.links[0])[1])

    def end(self, signum: int = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(signum)
        out, err = self.process.communicate(timeout=PATIENCE)
        assert out == ""
        return self.process.returncode, err


@pytest.fixture
def program():
    started: list[Program] = []

    def start(*args, **env) -> Program:
        started.append(Program(*args, **env))
        return started[-1]

    yield start
    for p in started:
        p.process.kill()
        p.process.wait()


async def say(link: str, url: str = "", frames: int = 10, **options) -> Client:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{link}/api/chat?audio=pcm_s16le{url}", **options) as connection,
    ):
        client = Client(connection)
        await client.opened()
        await client.talk(tone(frames), first=0)
        return client


def test_the_demo_is_ready_and_opens_a_browser(program, tmp_path):
    """One command: no download, no question."""
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    p = program("--demo", BROWSER=str(browser), HF_HUB_OFFLINE="1")
    assert re.search(r"ms per frame \(p95 [\d.]+\) of 80: ", "\n".join(p.lines))
    assert p.links == [f"http://localhost:{p.port}"]
    deadline = time.monotonic() + 20
    while not (tmp_path / "opened").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (tmp_path / "opened").read_text().strip() == p.links[0]
    client = asyncio.run(say(p.links[0]))
    assert len(client.audio) == 10
    code, err = p.end()
    assert code == 130
    assert "ended by SIGINT" in err and "Traceback" not in err
    assert "talk.begins talk=1" in err


def test_a_closed_terminal_ends_it_in_order_amid_a_talk(program, tiny_checkpoint, tmp_path):
    p = program("--model", tiny_checkpoint, "--no-browser", "--no-compile", "--record", tmp_path / "kept")
    assert f"every talk is recorded in {tmp_path}/kept" in p.lines

    async def act() -> Client:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{p.links[0]}/api/chat?audio=pcm_s16le") as connection,
        ):
            client = Client(connection)
            await client.opened()
            await client.talk(tone(10), first=0)
            p.process.send_signal(signal.SIGHUP)
            while await client.receive() is not None:
                pass
            return client

    client = asyncio.run(act())
    assert client.errors == ["the server stops"]
    _out, err = p.process.communicate(timeout=PATIENCE)
    assert p.process.returncode == 129, err
    assert "ended by SIGHUP" in err and "Traceback" not in err
    [folder] = (tmp_path / "kept").iterdir()
    assert soundfile.info(folder / "stereo.wav").frames == 10 * 1920
    # The log is for programs too.
    lines = [line.split() for line in err.splitlines() if re.match(r"\d{4}-\d\d-\d\dT", line)]
    assert {"talk.connected", "talk.begins", "talk.ended", "recording.ended"} == {line[1] for line in lines}
    [ended] = [dict(f.split("=") for f in line[2:]) for line in lines if line[1] == "talk.ended"]
    assert ended["frames"] == "10"


def test_off_this_machine_it_wants_a_token_that_it_prints_once(program, tiny_checkpoint, tmp_path):
    tls = certificate(tmp_path / "tls")
    p = program(
        "--model", tiny_checkpoint, "--no-browser", "--no-compile", "--host", "0.0.0.0", "--ssl", tls, "--allow-host", "moshi.local",
        "--rows", "2", "--steps", "5",
    )  # fmt: skip
    token = re.fullmatch(rf"https://localhost:{p.port}/#token=([\w-]+)", p.links[0])[1]
    assert len(token) >= 22
    assert p.links[-1] == f"https://moshi.local:{p.port}/#token={token}"
    assert not any("mkcert" in line for line in p.lines)
    link = f"https://localhost:{p.port}"
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        asyncio.run(say(link, ssl=False))
    assert refused.value.status == 401
    # --steps is accepted and limits nothing.
    assert len(asyncio.run(say(link, f"&token={token}", ssl=False)).audio) == 10
    code, err = p.end(signal.SIGTERM)
    assert code == 143 and "ended by SIGTERM" in err
    assert token not in err


def test_off_this_machine_without_https_it_says_what_is_missing(capsys):
    args = local_web.parser().parse_args(["--host", "0.0.0.0", "--token", "short"])
    rules = hosting.rules_of(args, say_aloud)
    assert any("--ssl DIR" in line and "mkcert" in line for line in web_work.invitation(args, rules))
    assert "a token of 5 characters can be guessed" in capsys.readouterr().err
    here = local_web.parser().parse_args(["--host", "localhost"])
    assert hosting.rules_of(here, say_aloud).token is None
    assert not any("mkcert" in line for line in web_work.invitation(here, hosting.rules_of(here, say_aloud)))


def test_another_page_and_none(tmp_path):
    (tmp_path / "index.html").write_text("mine")
    assert hosting.page_folder(str(tmp_path)) == tmp_path
    assert hosting.page_folder("none") is None
    assert (hosting.page_folder(None) / "index.html").exists()


BAD = {
    "rows": (["--rows", "0"], "--rows should be 1 or more"),
    "port": (["--port", "99999"], "--port should be from 0 to 65535"),
    "host": (["--host", "no.such.host.invalid"], "is no address of this machine"),
    "tls": (["--ssl", "HERE"], "cert.pem is not there"),
    "page": (["--static", "HERE"], "expects a folder with an index.html"),
    "token": (["--token", "a b"], "--token may have letters"),
    "origin": (["--allow-origin", "*"], "an origin should be written as"),
    "name": (["--allow-host", "a/b"], "a host should be a name"),
    "recording": (["--record", "FILE"], "is a file; --record expects a folder"),
    "recording below a file": (["--record", "FILE/x"], "cannot be made"),
    "model": (["--model", "HERE/none"], "does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(tmp_path, case):
    (tmp_path / "file").write_text("")
    args, message = BAD[case]
    args = [a.replace("HERE", str(tmp_path)).replace("FILE", str(tmp_path / "file")) for a in args]
    with pytest.raises(MoshiError, match=message):
        local_web.main([*([] if "--model" in args else ["--demo"]), "--no-browser", "--port", "0", *args])


def test_a_port_in_use_is_told_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is taken by another program"):
            local_web.main(["--demo", "--no-browser", "--port", str(port)])


@pytest.mark.parametrize(
    ("preset", "message"), [("tiny-tts", "text-to-speech model"), ("tiny-stt", "speech-to-text model")]
)
def test_a_model_that_cannot_talk_is_refused(tmp_path, preset, message):
    from random_checkpoint import write

    write(tmp_path / "other", preset, None, seed=1)
    with pytest.raises(MoshiError, match=message):
        local_web.main(["--model", str(tmp_path / "other"), "--no-browser", "--port", "0"])


def test_flags_of_the_published_program():
    """Their spelling, meaning and defaults."""
    args = local_web.parser().parse_args(
        [
            "--tokenizer",
            "t",
            "--moshi-weight",
            "w",
            "--mimi-weight",
            "m",
            "-q",
            "4",
            "--steps",
            "4000",
            "--hf-repo",
            "a/b",
            "--static",
            "none",
            "--host",
            "h",
            "--port",
            "1",
            "--no-browser",
            "--ssl",
            "d",
            "--lm-config",
            "c",
        ]
    )
    assert (args.moshi_weights, args.mimi_weights, args.tokenizer, args.lm_config) == ("w", "m", "t", "c")
    assert (args.quantized, args.hf_repo, args.static, args.host, args.port, args.no_browser, args.ssl) == (
        4,
        "a/b",
        "none",
        "h",
        1,
        True,
        "d",
    )
    assert local_web.parser().parse_args([]).port == 8998


def test_it_is_installed_with_its_page():
    """The console script, the extra, and every file of the page in the wheel."""
    from test_packaging import project

    settings = project()
    assert settings["project"]["scripts"]["moshi-local-web"] == "moshi_mlx.__main__:local_web"
    assert {re.split("[>=]", d)[0] for d in settings["project"]["optional-dependencies"]["server"]} == {
        "aiohttp",
        "msgpack",
        "soundfile",
    }
    patterns = settings["tool"]["setuptools"]["package-data"]["moshi_mlx"]
    matched = {p for pattern in patterns for p in (ROOT / "moshi_mlx").glob(pattern)}
    page = {p for p in (ROOT / "moshi_mlx" / "server" / "static").rglob("*") if p.is_file()}
    assert page and page <= matched


@pytest.mark.parametrize("command", [["local_web", "--demo"], ["serve", "--talk", "demo"]])
def test_without_its_extra_it_says_what_to_install(tmp_path, command):
    (tmp_path / "aiohttp.py").write_text("raise ModuleNotFoundError(\"No module named 'aiohttp'\", name='aiohttp')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    module, *flags = command
    done = subprocess.run(
        [sys.executable, "-m", f"moshi_mlx.{module}", *flags], env=env, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.strip() == "error: the server needs aiohttp: pip install '.[server]' in the clone of moshi_mlx"
