"""The small speech-to-text model in the package hears what the prompts of the demo model say."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import virtual_audio

from moshi_mlx import stt
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.checkpoint.published import DEMO_FOLDER, DEMOS
from moshi_mlx.models.__main__ import main as models

FOLDER = DEMOS["demo-stt"]


def test_the_folder_is_complete_and_small():
    assert sum(p.stat().st_size for p in FOLDER.iterdir()) <= 7e6
    files = locate("demo-stt")
    assert files.licence == "mit"
    assert files.config.stt is not None
    # The codec is in the package once.
    assert (files.mimi, files.tokenizer) == (DEMO_FOLDER / "mimi.safetensors", FOLDER / "tokenizer.model")
    assert not [*FOLDER.glob("mimi*")]


def test_a_copy_made_by_a_command_has_its_codec(tmp_path):
    from moshi_mlx.convert import __main__ as convert

    for source in ("demo-stt", str(FOLDER)):
        copy = tmp_path / source.replace("/", "_")
        assert convert.main([source, str(copy), "--no-verify"]) == 0
        assert (copy / "mimi.safetensors").read_bytes() == (DEMO_FOLDER / "mimi.safetensors").read_bytes()
        assert locate(copy).mimi == copy / "mimi.safetensors"


def test_the_page_says_its_size():
    page = (FOLDER.parents[1] / "docs" / "demo-model.md").read_text()
    [size] = re.findall(r"`moshi_mlx/demo_stt`, ([\d.]+) MB", page)
    assert float(size) == round(sum(p.stat().st_size for p in FOLDER.iterdir()) / 1e6, 1)


def test_it_is_installed_with_the_package():
    from test_packaging import project

    patterns = project()["tool"]["setuptools"]["package-data"]["moshi_mlx"]
    matched = {p for pattern in patterns for p in FOLDER.parent.glob(pattern)}
    assert {*FOLDER.iterdir()} <= matched


@pytest.mark.parametrize(
    ("name", "text"),
    [("sum", "what is three plus four"), ("name", "what is your name"), ("about", "tell me about yourself")],
)
def test_what_it_hears(name, text, capsys, tmp_path):
    """Also the words' times: in order, and the first where the speech begins."""
    written = tmp_path / "heard.json"
    assert stt.main(["--demo", str(DEMO_FOLDER / "prompts" / f"{name}.flac"), "-o", str(written)]) == 0
    words = json.loads(written.read_text())["words"]
    assert " ".join(word["word"].strip() for word in words) == text
    starts = [word["start"] for word in words]
    assert starts == sorted(starts)
    assert 0.2 <= starts[0] <= 0.8  # the recordings begin with 0.4 s of silence


@pytest.mark.skipif(not virtual_audio.available(), reason="PulseAudio and its ALSA plugin are not installed")
def test_what_it_hears_through_a_microphone(tmp_path):
    """The end of the turn is told, too."""
    pcm, rate = soundfile.read(DEMO_FOLDER / "prompts" / "sum.flac", dtype="float32")
    server = virtual_audio.VirtualAudio(tmp_path)
    try:
        command = [
            sys.executable,
            "-m",
            "moshi_mlx.stt",
            "--demo",
            "--input-device",
            virtual_audio.MICROPHONE,
            "--json",
        ]
        p = subprocess.Popen(command, env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while "listening" not in (line := p.stderr.readline()):
            assert line, "the command ended"
        server.speak(np.concatenate([pcm, np.zeros(rate // 2, np.float32)])).wait(120)
        time.sleep(1)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=300)
    finally:
        server.stop()
    assert p.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert " ".join(e["text"].strip() for e in events if e["type"] == "word") == "what is three plus four"
    assert [e["type"] for e in events].count("end_of_turn") == 1


def test_the_list_of_models_names_it(capsys):
    assert models(["demo-stt"]) == 0
    assert "python -m moshi_mlx.stt --demo" in capsys.readouterr().out
