"""The command, end to end, with files in place of devices: in its own process where exit codes and signals matter."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshi_mlx import local, run_inference
from moshi_mlx.commands import local as local_work
from moshi_mlx.errors import MoshiError

PROGRAM = Path(__file__).with_name("live_program.py")
# For programs that hang: every wait ends with what it waits for.
PATIENCE = 300.0


def call(*args) -> int:
    return local.main([*map(str, args), "--no-compile"])


def start(*args, program: list[str] | None = None, **options) -> subprocess.Popen:
    command = [sys.executable, *(program or ["-m", "moshi_mlx.local"]), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def echo(*args, **options) -> subprocess.Popen:
    """The command with a model that repeats what it hears: quick to start."""
    return start(*args, program=[str(PROGRAM), "echo"], **options)


@pytest.fixture
def speech(tmp_path, question) -> Path:
    """Three seconds of the question."""
    pcm, rate = soundfile.read(question, dtype="float32")
    soundfile.write(tmp_path / "speech.wav", pcm[: 3 * rate], rate)
    return tmp_path / "speech.wav"


@pytest.fixture
def long(tmp_path) -> Path:
    """Ten minutes of noise."""
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 24000, 1) as f:
        for t in range(600):
            f.write(0.1 * np.random.default_rng(t).standard_normal(24000))
    return tmp_path / "long.wav"


def test_a_fast_talk_says_what_run_inference_says(tiny_checkpoint, speech, tmp_path, capsys):
    """The same seed, the same step: the same sound to the sample, the same words."""
    assert (
        call(
            "--input",
            speech,
            "--output",
            tmp_path / "a.wav",
            "--fast",
            "--model",
            tiny_checkpoint,
            "--seed",
            7,
            "--tail",
            0,
        )
        == 0
    )
    said = capsys.readouterr().out
    run_inference.main(
        [
            str(speech),
            str(tmp_path / "b.wav"),
            "--model",
            str(tiny_checkpoint),
            "--seed",
            "7",
            "--no-compile",
            "--tail",
            "0",
        ]
    )
    a, _ = soundfile.read(tmp_path / "a.wav")
    b, _ = soundfile.read(tmp_path / "b.wav")
    np.testing.assert_array_equal(a[: len(b)], b)
    assert len(a) == 38 * 1920
    assert said.split() == capsys.readouterr().out.split()


def test_a_real_time_talk(tiny_checkpoint, speech, tmp_path):
    """As a user runs it, with everything that can be kept."""
    process = start(
        "--input", speech, "--output", tmp_path / "o.wav", "--model", tiny_checkpoint, "--tail", 1, "--json",
        "--record", tmp_path / "talk", "--trace", tmp_path / "trace.json",
    )  # fmt: skip
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert {e["event"] for e in events} >= {"text", "word", "status", "end"}
    assert events[-1]["event"] == "end"
    assert events[-1]["frames"] + events[-1]["dropped_frames"] == 50
    assert events[-1]["step_ms"]["p50"] > 0
    for word in (
        "licence",
        "precision",
        "memory",
        "ms per frame",
        "of 80",
        "talking: ",
        " -> ",
        "frames dropped",
        "recorded in",
    ):
        assert word in err, word
    words = [e for e in events if e["event"] == "word"]
    lines = [json.loads(line) for line in (tmp_path / "talk" / "transcript.jsonl").read_text().splitlines()]
    assert [w["text"] for w in words] == [line["text"] for line in lines if "text" in line]
    times = [(w["start"], w["end"]) for w in words]
    assert times == sorted(times)
    assert all(0 <= s < e <= 4.0 for s, e in times)
    moshi, _ = soundfile.read(tmp_path / "talk" / "moshi.wav")
    reply, _ = soundfile.read(tmp_path / "o.wav")
    np.testing.assert_allclose(moshi, reply, atol=1e-4)
    spans = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(e["name"] == "step" for e in spans) == events[-1]["frames"]


def test_steps_limit_the_talk(tiny_checkpoint, speech, tmp_path):
    call("--input", speech, "--output", tmp_path / "o.wav", "--fast", "--model", tiny_checkpoint, "--steps", 5)
    assert soundfile.info(tmp_path / "o.wav").frames == 5 * 1920


def test_a_trace_is_written_only_when_asked(tiny_checkpoint, speech, tmp_path, monkeypatch):
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    call("--input", speech, "--fast", "--model", tiny_checkpoint, "--steps", 5)
    assert list(folder.iterdir()) == []


def test_flags_of_the_published_program(tiny_checkpoint, speech, tmp_path):
    """Their spelling and meaning; --steps is a limit only when given."""
    files = {p.suffix: p for p in tiny_checkpoint.iterdir()}
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert local.parser().parse_args([]).steps is None
    assert local.parser().parse_args(["-q", "4", "--hf-repo", "a/b", "--steps", "9"]).quantized == 4
    assert files
    code = call(
        "--tokenizer", tiny_checkpoint / config["tokenizer_name"], "--moshi-weight", tiny_checkpoint / config["moshi_name"],
        "--mimi-weight", tiny_checkpoint / config["mimi_name"], "--model", tiny_checkpoint, "--steps", 3,
        "--input", speech, "--fast",
    )  # fmt: skip
    assert code == 0


def test_packed_keys_reach_the_model(tiny_checkpoint):
    args = local.parser().parse_args(["--model", str(tiny_checkpoint), "--kv-bits", "8", "--no-compile"])
    packed = local_work.load_talker(args)
    assert packed.frame_step.step.kv_bits == 8


BAD = {
    "fast without a file": (["--fast"], "--fast needs --input FILE"),
    "device and file": (["--input", "IN", "--input-device", "0"], "a side is a device or a file"),
    "no such input": (["--input", "no.wav", "--output", "OUT"], "no.wav does not exist"),
    "output in no folder": (["--input", "IN", "--output", "no/o.wav"], "make it first"),
    "output of no kind": (["--input", "IN", "--output", "o.txt"], "should end in"),
    "trace in no folder": (["--input", "IN", "--fast", "--trace", "no/t.json"], "make it first"),
    "steps": (["--input", "IN", "--fast", "--steps", "0"], "--steps should be 1 or more"),
    "lag": (["--input", "IN", "--fast", "--max-lag", "0"], "--max-lag should be above 0"),
    "latency": (["--input", "IN", "--fast", "--device-latency", "2000"], "--device-latency should be above 0"),
    "tail": (["--input", "IN", "--fast", "--tail", "-1"], "--tail should be 0 or more"),
    "channel": (["--input-channel", "0"], "counts from 1"),
    "voice with rust": (["--input", "IN", "--fast", "--codec", "rust", "--voice", "NATF2"], "need --codec mlx"),
    "rust with another codec": (["--input", "IN", "--fast", "--codec", "rust"], "has one of its own. Use --codec mlx"),
    "recording there": (["--input", "IN", "--fast", "--record", "HERE"], "exists and is not empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(tiny_checkpoint, speech, tmp_path, case, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "user.wav").write_bytes(b"")
    names = {"IN": str(speech), "OUT": str(tmp_path / "o.wav"), "HERE": str(tmp_path / "here")}
    args, message = BAD[case]
    with pytest.raises(MoshiError, match=message):
        call(*(names.get(a, a) for a in args), "--model", tiny_checkpoint)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".part" or p.name == "o.wav"]


def wait_for(path: Path, size: int, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not (path.exists() and path.stat().st_size > size):
        time.sleep(0.05)


def check_recording(folder: Path) -> float:
    """Every part is readable and of one length; returns seconds."""
    lengths = {soundfile.info(folder / f"{n}.wav").frames for n in ("user", "moshi", "stereo")}
    assert len(lengths) == 1
    [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]
    return lengths.pop() / 24000


@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_end_the_talk_in_order(long, tmp_path, sent, code):
    process = echo("--input", long, "--output", tmp_path / "o.wav", "--record", tmp_path / "talk")
    wait_for(tmp_path / "talk" / "user.wav", 60_000)
    process.send_signal(getattr(signal, sent))
    _out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert err.splitlines()[-2].startswith(f"ended by {sent}; ")
    assert err.splitlines()[-1] == f"recorded in {tmp_path}/talk"
    seconds = check_recording(tmp_path / "talk")
    assert seconds > 1
    assert soundfile.info(tmp_path / "o.wav").frames == round(seconds * 24000)
    assert not list(tmp_path.glob("*.part"))


def test_a_killed_talk_leaves_its_recording(long, tmp_path):
    process = echo("--input", long, "--record", tmp_path / "talk", "--fast")
    wait_for(tmp_path / "talk" / "user.wav", 200_000)
    process.kill()
    process.communicate(timeout=PATIENCE)
    for name in ("user", "moshi", "stereo"):
        assert soundfile.info(tmp_path / "talk" / f"{name}.wav").frames > 60_000


def test_a_closed_terminal_ends_the_talk(long, tmp_path):
    """The window is closed: the terminal's other side goes away, and with it every place to print to."""
    master, slave = pty.openpty()
    command = [sys.executable, str(PROGRAM), "echo", "--input", str(long), "--output", str(tmp_path / "o.wav")]
    process = subprocess.Popen(
        [*command, "--record", str(tmp_path / "talk")], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(slave)
    seen = b""
    deadline = time.monotonic() + PATIENCE
    while b"m mute" not in seen and time.monotonic() < deadline:
        seen += os.read(master, 4096)
    assert b"m mute" in seen, "a terminal gets the picture"
    while (tmp_path / "talk" / "user.wav").stat().st_size < 40_000:
        os.read(master, 65536)
    os.close(master)
    assert process.wait(PATIENCE) == 129
    assert check_recording(tmp_path / "talk") > 0.5


def test_keys_in_a_terminal(long, tmp_path):
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, str(PROGRAM), "echo", "--input", str(long), "--record", str(tmp_path / "talk"), "--output", str(tmp_path / "o.wav")],
        stdin=slave, stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    seen, sent = b"", []
    script = [(b"m mute", b"r"), (b"new conversation begins", b"m"), (b"you (muted)", b"p"), (b"[paused]", b"q")]
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        try:
            seen += os.read(master, 65536)
        except OSError:
            break
        if len(sent) < len(script) and script[len(sent)][0] in seen:
            os.write(master, script[len(sent)][1])
            sent.append(script[len(sent)][1])
            seen = b""
    assert sent == [b"r", b"m", b"p", b"q"]
    assert process.wait(PATIENCE) == 0
    os.close(master)
    assert "restart" in (tmp_path / "talk" / "transcript.jsonl").read_text()


def test_a_reader_that_goes_away(long):
    process = echo("--input", long, "--fast", "--json")
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(PATIENCE) == 1
    assert "Traceback" not in err


def test_a_full_disk_ends_the_recording_not_the_talk(long, tmp_path):
    """A file-size limit stands in for a full disk."""
    script = f"trap '' XFSZ; ulimit -f 128; exec {sys.executable} {PROGRAM} echo --input {long} --fast --steps 600 --record {tmp_path}/talk"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False, env=env
    )
    assert result.returncode == 1, result.stderr
    assert "600 frames" in result.stderr
    assert result.stderr.count(f"the recording in {tmp_path}/talk ends here: ") >= 1
    assert "Traceback" not in result.stderr
    for name in ("user", "moshi", "stereo"):
        assert soundfile.info(tmp_path / "talk" / f"{name}.wav").frames > 20_000


def test_a_full_disk_under_the_output_is_one_sentence(long, tmp_path):
    script = f"trap '' XFSZ; ulimit -f 64; exec {sys.executable} {PROGRAM} echo --input {long} --fast --output {tmp_path}/o.wav"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False, env=env
    )
    assert result.returncode == 1, result.stderr
    assert "error: " in result.stderr
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.wav"]


def test_without_portaudio_files_still_work(long, tmp_path):
    """sounddevice looks for its library when it is imported: here it finds none."""
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = echo("--input", long, "--fast", "--steps", "5", env=env)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    process = echo("--steps", "5", env=env)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err.startswith("error: PortAudio, which reaches microphones and loudspeakers, is not installed")
    assert err.count("\n") == 1
