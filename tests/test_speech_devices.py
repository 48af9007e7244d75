"""Speech commands on real PortAudio and virtual devices."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
import virtual_audio
from speech_toys import _tidy, checkpoint  # noqa: F401

from moshi_mlx import run_tts

pytestmark = pytest.mark.skipif(not virtual_audio.available(), reason="needs PulseAudio and its ALSA plugin")


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    server = virtual_audio.VirtualAudio(tmp_path_factory.mktemp("audio"))
    yield server
    server.stop()


def start(module: str, *args, env) -> subprocess.Popen:
    command = [sys.executable, "-m", f"moshi_mlx.{module}", *(str(a) for a in args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_speech_is_heard(audio, tmp_path):
    """What the loudspeaker plays is what the file holds, but for short gaps where the machine was late."""
    folder = checkpoint("tiny-tts")
    args = [
        "--text",
        "Hello there.",
        "--model",
        folder,
        "--voice-repo",
        folder / "voices",
        "--voice",
        "a.wav",
        "--nq",
        4,
    ]
    run_tts.main([str(a) for a in [*args, tmp_path / "o.wav"]])
    expected, _ = soundfile.read(tmp_path / "o.wav", dtype="float32")
    with audio.recording() as recording:
        p = start("run_tts", *args, "--output-device", virtual_audio.SPEAKER, env=audio.env)
        _, err = p.communicate(timeout=300)
        assert p.returncode == 0, err
        time.sleep(0.5)
        heard = recording.pcm
    assert f"played on {virtual_audio.SPEAKER}" in err
    for at in (4800, len(expected) // 2, len(expected) - 9600):
        piece = expected[at : at + 2400]
        match = np.correlate(heard, piece) / (np.linalg.norm(piece) ** 2)
        assert match.max() > 0.95, f"the sound at {at / 24000:.2f} s was not heard"


def test_a_microphone_is_heard(audio, question):
    p = start(
        "stt", "--model", checkpoint("tiny-stt"), "--input-device", virtual_audio.MICROPHONE, "--json", env=audio.env
    )
    while "listening" not in (line := p.stderr.readline()):
        assert line, "the command ended"
    pcm, _ = soundfile.read(question, frames=48000, dtype="float32")
    audio.speak(pcm).wait(120)
    time.sleep(0.5)
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert any(e["type"] == "word" for e in events)
    assert "Traceback" not in err
    assert "frames lost" not in err
