"""Kyutai's four MLX scripts of delayed-streams-modeling, unchanged, on small language models with a codec of the published shape.

    git clone https://github.com/kyutai-labs/delayed-streams-modeling
    DSM_SCRIPTS=delayed-streams-modeling/scripts python -m pytest -m slow tests/test_published_scripts.py

The Hub is a folder that looks like its cache, the sound card two files; everything else is what a user has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from random_checkpoint import TINY_STT, TINY_TTS, WORD_TOKENIZER, write_lm, write_lm_pytorch, write_mimi, write_voice

from moshi_mlx.config import presets

SCRIPTS = Path(os.environ.get("DSM_SCRIPTS", "none")).absolute()
VOICE = "expresso/ex03-ex01_happy_001_channel1_334s.wav"
STT = {**TINY_STT, "card": 2048}
TTS = {
    **TINY_TTS, "card": 2048, "n_q": 32, "dep_q": 32, "delays": [0, 0] + [2] * 31,
    "depformer_weights_per_step_schedule": [*range(9), *[9] * 7, *[10] * 16],
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SCRIPTS.is_dir(), reason="DSM_SCRIPTS names no folder with the published scripts"),
]


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """A cache of the Hub with the four repositories that the scripts name."""
    home = tmp_path_factory.mktemp("hub")
    mimi = home / presets.MIMI_NAME
    write_mimi(mimi, {**presets.MIMI_V0_1, "quantizer": {**presets.MIMI_V0_1["quantizer"], "n_q": 32}}, seed=1)

    def repository(name: str) -> Path:
        folder = home / "hub" / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        return snapshot

    def model(name: str, config: dict, pytorch: bool) -> None:
        folder = repository(name)
        config = {**config, "mimi_name": mimi.name, "tokenizer_name": "tokenizer.model"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / mimi.name).symlink_to(mimi)
        (folder / "tokenizer.model").symlink_to(WORD_TOKENIZER)
        if pytorch:
            write_lm_pytorch(folder / "model.safetensors", config, seed=1)
        else:
            write_lm(folder / "model.safetensors", config, None, seed=1)

    model("kyutai/stt-1b-en_fr-mlx", STT, pytorch=False)
    model("kyutai/stt-1b-en_fr-candle", STT, pytorch=True)
    model("kyutai/tts-1.6b-en_fr", TTS, pytorch=True)
    suffix = f"{TTS['model_id']['sig']}@{TTS['model_id']['epoch']}.safetensors"
    write_voice(repository("kyutai/tts-voices") / f"{VOICE}.{suffix}", TTS, seed=1)
    return home


def start(hub: Path, script: str, *args, **options) -> subprocess.Popen:
    card = Path(__file__).parent / "file_sound_card"
    environment = {"HF_HOME": str(hub), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(card)}
    command = [sys.executable, str(SCRIPTS / script), *map(str, args)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, **pipes, env={**os.environ, **environment, **options})


def ran(process: subprocess.Popen, text: str = "") -> str:
    out, err = process.communicate(text, timeout=900)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("options", [[], ["--vad"]], ids=["mlx", "candle"])
def test_stt_from_file(hub, question, options):
    said = ran(start(hub, "stt_from_file_mlx.py", question, *options)).split("starting inference")[1]
    assert len(said.splitlines()[1].split()) > 3


@pytest.mark.parametrize("options", [[], ["--vad"]], ids=["mlx", "candle"])
def test_stt_from_the_microphone(hub, question, tmp_path, options):
    """It listens until it is interrupted; what it says comes word by word."""
    process = start(hub, "stt_from_mic_mlx.py", *options, MICROPHONE=str(question), PYTHONUNBUFFERED="1")
    until = time.monotonic() + 300
    said = ""
    while "recording audio" not in said:
        said = process.stdout.readline()
        assert said, process.stderr.read()
        assert time.monotonic() < until
    time.sleep(20)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert err.strip().endswith("KeyboardInterrupt")
    assert len(out.split()) > 3


@pytest.mark.parametrize("options", [[], ["--quantize", "8"]], ids=["dense", "q8"])
def test_tts(hub, tmp_path, options):
    (tmp_path / "text.txt").write_text("the people are here today")
    ran(start(hub, "tts_mlx.py", tmp_path / "text.txt", tmp_path / "out.wav", *options))
    check(tmp_path / "out.wav")


def test_tts_on_the_loudspeaker(hub, tmp_path):
    ran(start(hub, "tts_mlx.py", "-", "-", LOUDSPEAKER=str(tmp_path / "out.wav")), "the people")
    check(tmp_path / "out.wav")


def test_tts_while_the_text_comes(hub, tmp_path):
    ran(start(hub, "tts_mlx_streaming.py", tmp_path / "out.wav"), "the people\nare here today\n")
    check(tmp_path / "out.wav")


def test_tts_while_the_text_comes_on_the_loudspeaker(hub, tmp_path):
    ran(start(hub, "tts_mlx_streaming.py", "-", LOUDSPEAKER=str(tmp_path / "out.wav")), "the people\n")
    check(tmp_path / "out.wav")


def check(path: Path) -> None:
    sound, rate = soundfile.read(path, dtype="float32")
    assert rate == 24000
    assert len(sound) > rate / 2
    assert np.abs(sound).max() > 1e-3
