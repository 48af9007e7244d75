"""`python -m moshi.client` from PyPI, unchanged, talks with the demo; its sound card is two files."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import soundfile
from web_server import PATIENCE, found_again

pytest.importorskip("sphn")
if importlib.util.find_spec("moshi") is None:
    pytest.skip("moshi is not installed (pip install --no-deps moshi)", allow_module_level=True)

sys.path.append(str(Path(__file__).resolve().parent.parent))
from test_web_models import serve

from moshi_mlx.checkpoint.registry import DEMO_FOLDER

HERE = Path(__file__).parent


def test_the_published_client_asks_and_hears(tmp_path):
    """It does not wait for the handshake, sends 80 ms a message, and reads our stream with sphn, which forgives nothing."""
    question, rate = soundfile.read(DEMO_FOLDER / "prompts" / "sum.flac", dtype="float32")
    soundfile.write(tmp_path / "microphone.wav", question, rate)
    card = {
        "MICROPHONE": str(tmp_path / "microphone.wav"),
        "LOUDSPEAKER": str(tmp_path / "loudspeaker.wav"),
        "PYTHONPATH": str(HERE / "file_sound_card"),
        "PYTHONUNBUFFERED": "1",
    }
    with serve(DEMO_FOLDER, seed=1, record=tmp_path / "kept") as server:
        log = tmp_path / "said.txt"
        with log.open("w") as out:
            client = subprocess.Popen(
                [sys.executable, HERE / "moshi_client.py", "--port", str(server.port)],
                env={**os.environ, **card}, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        begun = time.monotonic()
        while "seven" not in log.read_text() and time.monotonic() < begun + PATIENCE:
            time.sleep(0.05)
        # The last word is still being spoken.
        time.sleep(0.7)
        # It says when it has heard nothing for a while, as on a busy machine, wherever it is in a sentence.
        said = re.sub(r"\x1b\[\d+m( \[LAG\])?", "", log.read_text())
        client.send_signal(signal.SIGINT)
        client.wait(PATIENCE)
        assert "three plus four is seven" in said
        assert "unknown message kind 0" in said
        assert "Lost connection" not in said
        server.wait_free()
    heard, _ = soundfile.read(tmp_path / "loudspeaker.wav", dtype="float32")
    [kept] = (tmp_path / "kept").glob("*/moshi.wav")
    while "recording" in {thread.name for thread in threading.enumerate()}:
        time.sleep(0.02)
    said, _ = soundfile.read(kept, dtype="float32")
    assert found_again(heard, said) > 0.8
    listener = pytest.importorskip("pocketsphinx") and pytest.importorskip("examples.train_demo.recogniser")
    assert listener.heard_speech(listener.Recogniser("answer"), said, 24000).startswith("three plus four is")
