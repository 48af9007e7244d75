"""Recordings that are whole at every moment: growing wav files, transcripts, killed programs, full disks."""

from __future__ import annotations

import json
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from moshi_mlx.audio.wav import GROWING_HEADER as HEADER
from moshi_mlx.errors import OutputError
from moshi_mlx.live.recording import FLUSH_FRAMES, WAITING_FRAMES, Recorder
from moshi_mlx.live.wav import GrowingWav
from moshi_mlx.text import Word

FRAME = 1920


def sound(t: int, n: int = FRAME) -> np.ndarray:
    return 0.3 * np.random.default_rng(t).standard_normal(n).astype(np.float32).clip(-1, 1)


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "transcript.jsonl").read_text().splitlines()]


# The file ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
def test_wav_is_readable_after_every_append(tmp_path, channels):
    wav = GrowingWav(tmp_path / "a.wav", channels, 24000)
    written = np.zeros((0, channels), np.float32)
    for t in range(5):
        pcm = sound(t, 1000 * channels).reshape(-1, channels)
        wav.append(pcm if channels > 1 else pcm[:, 0])
        written = np.concatenate([written, pcm])
        read, rate = soundfile.read(tmp_path / "a.wav", dtype="float32", always_2d=True)
        assert rate == 24000
        np.testing.assert_allclose(read, written, atol=1 / 32000)
    wav.close()


def test_wav_beyond_four_gigabytes_is_rf64(tmp_path, monkeypatch):
    """The limit is lowered so that a small file crosses it."""
    monkeypatch.setattr(GrowingWav, "limit", 10_000)
    wav = GrowingWav(tmp_path / "a.wav", 1, 24000)
    wav.append(sound(0, 2000))
    assert (tmp_path / "a.wav").read_bytes()[:4] == b"RIFF"
    wav.append(sound(1, 5000))
    wav.close()
    data = (tmp_path / "a.wav").read_bytes()
    assert data[:4] == b"RF64"
    assert data[12:16] == b"ds64"
    assert struct.unpack("<QQQ", data[20:44]) == (len(data) - 8, 14000, 7000)
    info = soundfile.info(tmp_path / "a.wav")
    assert (info.format, info.frames) == ("RF64", 7000)
    np.testing.assert_allclose(
        soundfile.read(tmp_path / "a.wav", dtype="float32")[0],
        np.concatenate([sound(0, 2000), sound(1, 5000)]),
        atol=1e-4,
    )


def test_wav_cut_at_any_byte_still_reads(tmp_path):
    """A program killed between the sound and the header leaves bytes no header knows."""
    wav = GrowingWav(tmp_path / "a.wav", 1, 24000)
    wav.append(sound(0, 500))
    wav._write_at(b"xyz", HEADER + 1000)
    assert soundfile.info(tmp_path / "a.wav").frames == 500
    wav.close()
    assert (tmp_path / "a.wav").stat().st_size == HEADER + 1000


# The recorder ----------------------------------------------------------------------------------------------------------


def test_recording(tmp_path):
    recorder = Recorder(tmp_path / "talk")
    for t in range(20):
        words = [Word("hello", 0.4, 0.56)] if t == 7 else []
        recorder.add(sound(t), sound(100 + t), words)
        if t == 10:
            recorder.note("restart")
    recorder.close()
    user = soundfile.read(tmp_path / "talk" / "user.wav", dtype="float32")[0]
    moshi = soundfile.read(tmp_path / "talk" / "moshi.wav", dtype="float32")[0]
    stereo = soundfile.read(tmp_path / "talk" / "stereo.wav", dtype="float32")[0]
    np.testing.assert_allclose(user, np.concatenate([sound(t) for t in range(20)]), atol=1e-4)
    np.testing.assert_allclose(moshi, np.concatenate([sound(100 + t) for t in range(20)]), atol=1e-4)
    np.testing.assert_array_equal(stereo, np.stack([user, moshi], axis=1))
    assert lines(tmp_path / "talk") == [
        {"start": 0.4, "end": 0.56, "text": "hello"},
        {"start": 0.88, "event": "restart"},
    ]


def slow_disk(recorder: Recorder) -> threading.Event:
    """Nothing is written until the event is set."""
    go, write = threading.Event(), recorder._write

    def slow(batch, done):
        go.wait()
        return write(batch, done)

    recorder._write = slow
    return go


def frames_of(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0].reshape(-1, FRAME)


def test_frames_a_slow_disk_missed_are_silence(tmp_path):
    """The three files keep their time, and the end of the talk tells."""
    recorder = Recorder(tmp_path / "talk")
    go = slow_disk(recorder)
    n = WAITING_FRAMES + FLUSH_FRAMES + 20
    for t in range(n):
        recorder.add(sound(t), sound(t))
    missed = recorder.missed
    assert 20 <= missed <= 20 + FLUSH_FRAMES
    go.set()
    while not recorder._queue.empty():
        time.sleep(0.01)
    recorder.add(sound(n), sound(n))
    recorder.close()
    assert (
        recorder.outcome() == f"recorded in {tmp_path}/talk; {missed} frames came too fast for the disk and are silent"
    )
    user = frames_of(tmp_path / "talk" / "user.wav")
    assert [bool(f.any()) for f in user] == [True] * (n - missed) + [False] * missed + [True]


def test_a_fast_talk_waits_for_the_disk(tmp_path):
    recorder = Recorder(tmp_path / "talk", patient=True)
    go = slow_disk(recorder)
    threading.Timer(0.2, go.set).start()
    for t in range(2 * WAITING_FRAMES):
        recorder.add(sound(t), sound(t))
    recorder.close()
    assert recorder.missed == 0
    assert recorder.outcome() == f"recorded in {tmp_path}/talk"
    assert all(f.any() for f in frames_of(tmp_path / "talk" / "user.wav"))


def test_nothing_is_overwritten(tmp_path):
    Recorder(tmp_path / "talk").close()
    with pytest.raises(OutputError, match="talk exists and is not empty"):
        Recorder(tmp_path / "talk")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file; expected a folder"):
        Recorder(tmp_path / "file")
    with pytest.raises(OutputError, match="the folder /proc/talk cannot be made"):
        Recorder("/proc/talk")


TALK = """
import sys, time, numpy as np
from moshi_mlx.live.recording import Recorder
from moshi_mlx.text import Word
recorder = Recorder(sys.argv[1], on_problem=lambda text: print(text, file=sys.stderr, flush=True))
pace = float(sys.argv[2])
for t in range(10_000):
    recorder.add(np.full(1920, 0.25, np.float32), np.full(1920, -0.25, np.float32), [Word("w", t * 0.08, t * 0.08 + 0.08)])
    print(t, flush=True)
    if recorder.broken:
        recorder.close()
        sys.exit(3)
    time.sleep(pace)
"""


def test_a_killed_program_loses_less_than_a_second(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", TALK, str(tmp_path / "talk"), "0.08"], stdout=subprocess.PIPE, text=True
    )
    added = [int(process.stdout.readline()) for _ in range(40)][-1] + 1
    process.kill()
    process.wait()
    for name in ("user", "moshi", "stereo"):
        frames = soundfile.info(tmp_path / "talk" / f"{name}.wav").frames / FRAME
        assert frames == int(frames)
        assert added - 12.5 <= frames
    assert len(lines(tmp_path / "talk")) >= added - 12.5


def test_a_full_disk_ends_the_recording_and_leaves_it_intact(tmp_path):
    """A file-size limit stands in for a full disk."""

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    process = subprocess.run(
        [sys.executable, "-c", TALK, str(tmp_path / "talk"), "0.001"],
        capture_output=True, text=True, preexec_fn=limit, timeout=300, check=False,
    )  # fmt: skip
    assert process.returncode == 3, process.stderr
    problem = process.stderr.splitlines()
    assert len(problem) == 1, process.stderr
    assert problem[0].startswith(f"the recording in {tmp_path}/talk ends here: ")
    for name, channels in (("user", 1), ("moshi", 1), ("stereo", 2)):
        pcm, _ = soundfile.read(tmp_path / "talk" / f"{name}.wav", dtype="float32", always_2d=True)
        # Half of the limit, at least: the stereo file is the first to reach it.
        assert len(pcm) > 40_000
        np.testing.assert_allclose(np.abs(pcm), 0.25, atol=1e-4)
        size = (tmp_path / "talk" / f"{name}.wav").stat().st_size
        assert size == HEADER + 2 * channels * len(pcm)
    assert lines(tmp_path / "talk")


def test_a_talk_goes_on_without_its_recording(tmp_path):
    recorder = Recorder(tmp_path / "talk")
    told = []
    recorder.on_problem = told.append
    for sound_file in recorder._sounds.values():
        sound_file.append = lambda pcm: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    for t in range(400):
        recorder.add(sound(t), sound(t))
        if t == 20:
            deadline = time.monotonic() + 60
            while not told and time.monotonic() < deadline:
                time.sleep(0.01)
    recorder.close()
    assert told == [f"the recording in {tmp_path}/talk ends here: no space left on device."]
    assert recorder.broken == told[0]
    assert soundfile.info(tmp_path / "talk" / "user.wav").frames == 0
