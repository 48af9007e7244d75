"""The command, end to end, as a user runs it: in its own process where exit codes and signals matter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from random_checkpoint import write_tokenizer

from moshi_mlx import commands, run_inference
from moshi_mlx.config.presets import TOKENIZER_NAME
from moshi_mlx.errors import MoshiError

# Samples of the question.
LENGTH = 150229


def run(*args, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "moshi_mlx.run_inference", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def call(*args) -> int:
    return run_inference.main([*map(str, args), "--no-compile"])


def test_question_to_answer(tiny_checkpoint, question, tmp_path):
    out = tmp_path / "reply.wav"
    result = run(question, out, "--model", tiny_checkpoint, "--text", tmp_path / "reply.txt", "--tail", 0)
    assert result.returncode == 0, result.stderr
    info = soundfile.info(out)
    assert (info.samplerate, info.channels, info.frames) == (24000, 1, LENGTH)
    assert (tmp_path / "reply.txt").read_text().strip() == result.stdout.strip()
    for word in (
        "licence",
        "precision",
        "memory: needs",
        "79 steps",
        "ms per step (p95",
        "real-time factor",
        "peak memory",
    ):
        assert word in result.stderr


def test_same_seed_same_reply(tiny_checkpoint, question, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        call(question, tmp_path / f"{name}.wav", "--model", tiny_checkpoint, "--seed", seed)
    a, b, c = ((tmp_path / f"{n}.wav").read_bytes() for n in "abc")
    assert a == b != c


def test_json(tiny_checkpoint, question, tmp_path, capsys):
    call(question, "--model", tiny_checkpoint, "--json", "--greedy", "--tail", 0)
    result = json.loads(capsys.readouterr().out)
    reply = result["replies"][0]
    assert reply["duration"] == 6.26
    assert reply["output"] is None
    assert result["steps"] == 79
    assert " ".join(w["word"] for w in reply["words"]) == " ".join(reply["text"].split())
    times = [(w["start"], w["end"]) for w in reply["words"]]
    assert all(0 <= s < e <= 6.32 for s, e in times)
    assert times == sorted(times)


def test_stereo_has_the_user_left(tiny_checkpoint, question, tmp_path):
    call(question, tmp_path / "out.wav", "--model", tiny_checkpoint, "--stereo")
    both, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    heard, _ = soundfile.read(question, dtype="float32")
    np.testing.assert_allclose(both[: len(heard), 0], heard, atol=1e-4)


def test_batch_gives_what_single_runs_give(tiny_checkpoint, question, tmp_path):
    speech, rate = soundfile.read(question, dtype="float32")
    soundfile.write(tmp_path / "short.flac", speech[: 2 * rate], rate)
    soundfile.write(tmp_path / "long.wav", speech[: 4 * rate], rate)
    call(
        tmp_path / "short.flac",
        tmp_path / "long.wav",
        "--batch",
        tmp_path / "both",
        "--model",
        tiny_checkpoint,
        "--seed",
        5,
    )
    call(tmp_path / "short.flac", tmp_path / "s.wav", "--model", tiny_checkpoint, "--seed", 5)
    call(tmp_path / "long.wav", tmp_path / "l.wav", "--model", tiny_checkpoint, "--seed", 6)
    for name, alone in (("short", "s"), ("long", "l")):
        a, _ = soundfile.read(tmp_path / "both" / f"{name}.wav")
        b, _ = soundfile.read(tmp_path / f"{alone}.wav")
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert (tmp_path / "both" / f"{name}.txt").exists()


def test_any_rate_format_and_a_pipe(tiny_checkpoint, question, tmp_path):
    speech, rate = soundfile.read(question, dtype="float32")
    soundfile.write(tmp_path / "q.flac", np.stack([speech, speech], axis=1), rate)
    command = [
        sys.executable,
        "-m",
        "moshi_mlx.run_inference",
        "-",
        str(tmp_path / "out.flac"),
        "--model",
        str(tiny_checkpoint),
        "--no-compile",
        "--tail",
        "0",
    ]
    with (tmp_path / "q.flac").open("rb") as f:
        assert subprocess.run(command, stdin=f, capture_output=True, timeout=300, check=False).returncode == 0
    assert soundfile.info(tmp_path / "out.flac").frames == LENGTH


def test_tail_listens_on(tiny_checkpoint, question, tmp_path):
    call(question, tmp_path / "o.wav", "--model", tiny_checkpoint, "--tail", 1)
    assert soundfile.info(tmp_path / "o.wav").frames == LENGTH + 24000


def write_wav(path, pcm, rate=24000):
    soundfile.write(path, pcm, rate)
    return path


BAD = {
    "missing input": (lambda d, q: [d / "no.wav", d / "o.wav"], "does not exist"),
    "silent": (lambda d, q: [write_wav(d / "z.wav", np.zeros(24000)), d / "o.wav"], "digital silence"),
    "10 ms": (lambda d, q: [write_wav(d / "z.wav", np.ones(240) / 2), d / "o.wav"], "lasts 10 ms"),
    "output folder missing": (lambda d, q: [q, d / "no" / "o.wav"], "make it first"),
    "output is a folder": (lambda d, q: [q, d], "is a folder"),
    "three names": (lambda d, q: [q, d / "o.wav", d / "p.wav"], "Use --batch"),
    "text folder missing": (lambda d, q: [q, d / "o.wav", "--text", d / "no" / "t.txt"], "make it first"),
    "negative tail": (lambda d, q: [q, d / "o.wav", "--tail", "-1"], "--tail should be"),
    "same names": (lambda d, q: [q, q, "--batch", d / "b"], "different names"),
    "guidance without conditions": (lambda d, q: [q, d / "o.wav", "--cfg-coef", "2"], "needs conditions"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(tiny_checkpoint, question, tmp_path, case):
    make, message = BAD[case]
    with pytest.raises(MoshiError, match=message):
        call(*make(tmp_path, question), "--model", tiny_checkpoint)
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".part" or p.name in ("o.wav", "b")]


def test_errors_are_one_sentence_and_exit_code_1(tiny_checkpoint, tmp_path):
    result = run(tmp_path / "no.wav", tmp_path / "o.wav", "--model", tiny_checkpoint)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_a_tokenizer_that_is_missing(tiny_copy, question, tmp_path):
    (tiny_copy / TOKENIZER_NAME).unlink()
    with pytest.raises(
        MoshiError, match=f"lacks the tokenizer '{TOKENIZER_NAME}'; put it there or name it with --tokenizer"
    ):
        call(question, tmp_path / "o.wav", "--model", tiny_copy)
    assert [p.name for p in tmp_path.iterdir()] == [tiny_copy.name]


def test_a_tokenizer_of_fewer_pieces_is_told_of(tiny_copy, question, tmp_path, capsys):
    """Known only when it is read, after the model was announced."""
    write_tokenizer(tiny_copy / TOKENIZER_NAME, 150)
    call(question, tmp_path / "o.wav", "--model", tiny_copy)
    assert " ".join(capsys.readouterr().err.split()).count("150 pieces, the model 200 text tokens") == 1


def test_numbers_that_are_none(capsys):
    for flag, value, message in (
        ("--temp", "hot", "'hot' is not a number"),
        ("--top-k", "2.5", "2.5 is not a whole number"),
        ("--context", "-1", "-1 is not a positive number of seconds"),
        ("--cfg-coef", "nan", "'nan' is not a number"),
    ):
        with pytest.raises(SystemExit):
            run_inference.parser().parse_args(["a.wav", flag, value])
        assert message in capsys.readouterr().err


def test_no_network(question, tmp_path):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = run(question, tmp_path / "o.wav", "-q", "4", env=env)
    assert result.returncode == 1
    assert "cannot be reached" in result.stderr
    assert "Traceback" not in result.stderr


def test_interrupt_leaves_nothing(tiny_checkpoint, tmp_path):
    write_wav(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(24000 * 600))
    command = [
        sys.executable,
        "-m",
        "moshi_mlx.run_inference",
        str(tmp_path / "long.wav"),
        str(tmp_path / "o.wav"),
        "--model",
        str(tiny_checkpoint),
        "--no-compile",
    ]
    for sent, code, word in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.time() + 300
        while time.time() < deadline and not any(p.stat().st_size > 100_000 for p in tmp_path.glob(".o.wav*.part")):
            time.sleep(0.1)
        process.send_signal(sent)
        _, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert word in err
        assert "Traceback" not in err
        assert sorted(p.name for p in tmp_path.iterdir()) == ["long.wav"]


def test_full_disk(tiny_checkpoint, question, tmp_path):
    """A file-size limit stands in for a full disk."""
    script = f"ulimit -f 64; exec {sys.executable} -m moshi_mlx.run_inference {question} {tmp_path}/o.wav --model {tiny_checkpoint} --no-compile"
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        ["bash", "-c", f"trap '' XFSZ; {script}"], capture_output=True, text=True, timeout=300, check=False, env=env
    )
    assert result.returncode == 1, result.stderr
    assert "cannot be written" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_full_disk_behind_standard_output(tiny_checkpoint, question):
    with open("/dev/full", "w") as full:
        command = [
            sys.executable,
            "-m",
            "moshi_mlx.run_inference",
            question,
            "--model",
            tiny_checkpoint,
            "--no-compile",
        ]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert result.returncode == 1
    assert result.stderr.endswith("error: standard output cannot be used: No space left on device.\n")


def test_what_the_system_refuses_is_one_sentence(capsys):
    def fails(error):
        def main(argv):
            raise error

        return main

    with pytest.raises(SystemExit, match="1"):
        commands.run(fails(PermissionError(13, "Permission denied", "/secret/config.json")))
    assert capsys.readouterr().err == "error: /secret/config.json cannot be used: Permission denied.\n"
    with pytest.raises(OSError, match="a defect"):
        commands.run(fails(OSError("a defect")))


@pytest.mark.slow
def test_an_hour_in_constant_memory(tiny_checkpoint, tmp_path):
    """Memory is flat after the first minute, and the times of words do not drift."""
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 24000, 1) as f:
        for _ in range(3600):
            f.write(0.1 * rng.standard_normal(24000))
    code = f"""
import resource, sys
from moshi_mlx import commands, run_inference
from moshi_mlx.session import Session
step, seen = Session.step, []
def watched(self, *args):
    frames = step(self, *args)
    if self.frames in (750, 45000):
        import mlx.core as mx
        mx.clear_cache()
        rss = int(open('/proc/self/statm').read().split()[1]) * 4096
        seen.append((rss, mx.get_active_memory()))
    return frames
Session.step = watched
run_inference.main([{str(tmp_path / "hour.wav")!r}, {str(tmp_path / "o.wav")!r}, '--model', {str(tiny_checkpoint)!r}, '--json', '--context', '20', '--tail', '0'])
print(seen, file=sys.stderr)
(rss1, mlx1), (rss2, mlx2) = seen
assert rss2 < rss1 + 30e6 and mlx2 <= mlx1 + 1e5, seen
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=3600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    reply = json.loads(result.stdout)["replies"][0]
    assert reply["duration"] == 3600
    assert 3500 < reply["words"][-1]["end"] <= 3600
    assert soundfile.info(tmp_path / "o.wav").frames == 3600 * 24000
