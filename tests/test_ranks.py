"""Work shared over the ranks of MLX's launcher: the results of one machine, and a rank that dies is told with its files."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from random_checkpoint import write
from row_drivers import noise
from speech_toys import _tidy, checkpoint  # noqa: F401

from moshi_mlx import run_inference, run_tts
from moshi_mlx.machine.ranks import Ranks

# The launcher, which adds the rank and the addresses of all to every process it starts.
LAUNCH = [sys.executable, "-c", "import sys; from mlx._distributed_utils.launch import main; sys.exit(main())"]


def launch(ranks: int, *command: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*LAUNCH, "-n", str(ranks), "-p", str(free_ports(ranks)), *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        **options,
    )


def free_ports(count: int) -> int:
    """The first of some ports in a row that nobody uses."""
    rng = np.random.default_rng(os.getpid() + time.monotonic_ns() % 2**32)
    while True:
        first = int(rng.integers(20000, 60000))
        try:
            for port in range(first, first + count):
                with socket.create_server(("127.0.0.1", port)):
                    pass
        except OSError:
            continue
        return first


def moshi(command: str, *args) -> list[str]:
    return [sys.executable, "-m", f"moshi_mlx.{command}", *map(str, args)]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("recordings")
    paths = [folder / f"{name}.wav" for name in "abcde"]
    for i, path in enumerate(paths):
        soundfile.write(path, noise(6 + 9 * (i % 2), i), 24000)
    return paths


def test_alone_everything_is_ours():
    with Ranks(["a", "b"], print) as ranks:
        assert (ranks.rank, ranks.size, ranks.leads) == (0, 1, True)
        assert ranks.part(["x", "y"]) == [(0, "x"), (1, "y")]
        ranks.done(0)
        assert ranks.gather([1]) == [[1]]
    assert not ranks.failed


@pytest.mark.parametrize("count", [2, 3])
def test_transcripts_are_those_of_one_machine(recordings, count, tmp_path):
    args = ("--model", checkpoint("tiny-stt"), "--batch", 2, *recordings)
    alone = subprocess.run(moshi("stt", *args, "-f", "json"), capture_output=True, text=True)
    shared = launch(count, *moshi("stt", "-f", "json", *args))
    assert json.loads(shared.stdout) == json.loads(alone.stdout)
    assert "5 recordings" in shared.stderr
    assert shared.stderr.count("recordings, ") == 1


def test_files_that_cannot_be_read_are_told_once_and_the_others_made(recordings, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    args = ("--model", checkpoint("tiny-stt"), recordings[0], tmp_path / "bad.wav", recordings[1])
    found = launch(2, *moshi("stt", *args, "--output-dir", tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt"]
    assert found.stderr.count("error: ") == 1
    assert "bad.wav" in found.stderr
    assert "terminated" not in found.stderr
    assert "rank 0 exited with code 1" in found.stderr


def test_more_ranks_than_files(recordings, tmp_path):
    found = launch(3, *moshi("stt", "--model", checkpoint("tiny-stt"), recordings[0], "--output-dir", tmp_path))
    assert "1 recording, " in found.stderr
    assert (tmp_path / "a.txt").exists()


@pytest.fixture(scope="module")
def dialogue(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dialogue")
    write(folder, "tiny", None, seed=1)
    return folder


def test_replies_are_those_of_one_machine_and_of_each_alone(recordings, dialogue, tmp_path):
    """In two rows that are filled again, in one process and in two, and one after the other."""
    args = [*recordings, "--model", dialogue, "--tail", 0.2, "--rows", 2, "--seed", 42, "--json"]
    alone = subprocess.run(moshi("run_inference", *args, "--batch", tmp_path / "one"), capture_output=True, text=True)
    shared = launch(2, *moshi("run_inference", *args, "--batch", tmp_path / "two"))
    replies = [
        [{k: v for k, v in r.items() if k != "output"} for r in json.loads(out.stdout)["replies"]]
        for out in (alone, shared)
    ]
    assert replies[0] == replies[1]
    assert [r["input"] for r in replies[0]] == list(map(str, recordings))
    for number, path in enumerate(recordings):
        sound = [soundfile.read(tmp_path / folder / path.name, dtype="int16")[0] for folder in ("one", "two")]
        np.testing.assert_array_equal(sound[1], sound[0])
        reply = tmp_path / f"{number}.wav"
        run_inference.main(
            [str(path), str(reply), "--model", str(dialogue), "--tail", "0.2", "--seed", str(42 + number), "--json"]
        )
        # Random weights are loud: what is beyond full scale is cut, and one step of 16 bits is a hair.
        np.testing.assert_allclose(soundfile.read(reply, dtype="int16")[0], sound[0], atol=1)


def test_requests_are_spoken_as_on_one_machine(tmp_path):
    """In rows that are filled again, in one process and in two; by itself each says the same."""
    texts = {"a": "Hello.", "b": "Good morning, how are you?", "c": "Yes.", "d": "One two three."}
    requests = [{"turns": [t], "voices": ["a.wav" if n < "c" else "b.wav"], "id": n} for n, t in texts.items()]
    path, args = (
        tmp_path / "r.jsonl",
        ("--model", checkpoint("tiny-tts"), "--voice-repo", checkpoint("tiny-tts") / "voices"),
    )
    path.write_text("\n".join(map(json.dumps, requests)))
    run_tts.main([str(path), *map(str, args), "--batch", "2", "--out-folder", str(tmp_path / "one")])
    found = launch(2, *moshi("run_tts", path, *args, "--out-folder", tmp_path / "two"))
    assert found.stderr.count("4 requests, ") == 1
    for request in requests:
        alone = tmp_path / "alone.jsonl"
        alone.write_text(json.dumps(request))
        run_tts.main([str(alone), *map(str, args), "--out-folder", str(tmp_path / "alone")])
        codes = [
            mx.load(str(tmp_path / way / f"{request['id']}.safetensors"))["frames"] for way in ("one", "two", "alone")
        ]
        np.testing.assert_array_equal(codes[1], codes[0])
        np.testing.assert_array_equal(codes[2], codes[0])


DYING = """
import os, signal, sys, time
from moshi_mlx import commands
from moshi_mlx import run_inference, run_tts
from moshi_mlx.machine.ranks import Ranks
def main(argv):
    with commands.share([f"{n}.wav" for n in "abcdefg"]) as ranks:
        for number, name in ranks.part(list("abcdefg")):
            if ranks.rank == DYING and number >= 3:
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
            ranks.done(number)
        time.sleep(WORK)
        found = ranks.gather(ranks.rank)
        print("gathered", ranks.rank, found, ranks.failed, flush=True)
    return 1 if ranks.failed else 0
commands.run(main, [])
"""


@pytest.mark.parametrize("dying", [0, 1])
@pytest.mark.parametrize("launcher", ["ends-the-others", "leaves-the-others"])
def test_a_rank_that_dies_is_told_with_its_files(tmp_path, dying, launcher):
    """Of three ranks one is killed with part of its work done; MLX's launcher ends the others at once, another might not."""
    script = tmp_path / "work.py"
    script.write_text(
        DYING.replace("DYING", str(dying)).replace("WORK", "30" if launcher == "ends-the-others" else "1.5")
    )
    if launcher == "ends-the-others":
        told = launch(3, sys.executable, str(script)).stderr
    else:
        told = "".join(started_by_hand(3, script, tmp_path))
    left = "d.wav, g.wav" if dying == 0 else "e.wav"
    if dying:
        assert told.count(f"error: rank 1 of 3 has ended before its work was done; not made: {left}.") == 1, told
    else:
        assert f"error: rank 0 of 3 has ended before its work was done; perhaps not made: a.wav, {left}." in told, told
    assert "Traceback" not in told
    if launcher == "leaves-the-others" and dying:
        assert "gathered 0 [0, 2] True" in told


def started_by_hand(count: int, script: Path, folder: Path) -> list[str]:
    """What each rank says, started without anybody who ends the others."""
    first = free_ports(count)
    hosts = folder / "hosts.json"
    hosts.write_text(json.dumps([[f"127.0.0.1:{first + r}"] for r in range(count)]))
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, "MLX_RANK": str(r), "MLX_HOSTFILE": str(hosts)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(count)
    ]
    said = [p.communicate(timeout=120)[0] for p in processes]
    assert -min(p.returncode for p in processes) == signal.SIGKILL
    return said
