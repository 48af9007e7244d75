"""Commands in pipes, with one bad recording among several, and with answers that go on after their question."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from speech_toys import _tidy, checkpoint  # noqa: F401

from moshi_mlx import local, run_inference, run_tts, stt
from moshi_mlx.audio.files import read_audio
from moshi_mlx.checkpoint.registry import DEMO_FOLDER
from moshi_mlx.commands.run_tts import names
from moshi_mlx.errors import InputError, MoshiError
from moshi_mlx.live.assemble import make_sides
from moshi_mlx.live.file_sides import SteadyFileSource
from moshi_mlx.session.answer import MOST_SECONDS, QUIET_SECONDS, Answer
from moshi_mlx.session.session import Frame

SUM = DEMO_FOLDER / "prompts" / "sum_three.flac"


def start(command: str, *args, **options) -> subprocess.Popen:
    command_line = [sys.executable, "-m", f"moshi_mlx.{command}", *map(str, args)]
    return subprocess.Popen(
        command_line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def speech(*args) -> list[str]:
    folder = checkpoint("tiny-tts")
    return [*map(str, args), "--model", str(folder), "--voice-repo", str(folder / "voices"), "--voice", "a.wav", "--seed", "3"]  # fmt: skip


# Standard output -------------------------------------------------------------------------------------------------------


def test_a_reply_on_standard_output(tiny_checkpoint, question, tmp_path):
    """The words go to standard error; the sound is what a file would hold, and other programs read it."""
    args = [question, "-", "--model", tiny_checkpoint, "--no-compile", "--tail", "0"]
    run_inference.main([*map(str, [question, tmp_path / "o.wav", *args[2:]])])
    out, err = start("run_inference", *args).communicate(timeout=120)
    (tmp_path / "p.wav").write_bytes(out)
    np.testing.assert_array_equal(soundfile.read(tmp_path / "p.wav")[0], soundfile.read(tmp_path / "o.wav")[0])
    assert b"real-time factor" in err
    raw, _ = start("run_inference", *args, "--raw").communicate(timeout=120)
    assert raw == out[44:]


def test_raw_in_and_out(tiny_checkpoint, question, tmp_path):
    """As a service would use it; --tail 0 is the recording's length exactly."""
    pcm = (np.clip(read_audio(question), -1, 1) * 32767).astype("<i2")[: 24000 * 2]
    p = start("run_inference", "--raw", "24000", "-", "-", "--model", tiny_checkpoint, "--no-compile", "--tail", "0")
    out, err = p.communicate(pcm.tobytes(), timeout=120)
    assert p.returncode == 0, err
    assert len(out) == pcm.nbytes


def test_speech_sounds_at_once(tmp_path):
    """What was said so far comes while more text is being written."""
    p = start("run_tts", *speech("-", "-"))
    p.stdin.write(b"Hello there, how are you? It is a fine day. ")
    p.stdin.flush()
    first = os.read(p.stdout.fileno(), 1 << 16)
    assert first.startswith(b"RIFF")
    while len(first) < 44 + 1920 * 2 * 5:
        first += os.read(p.stdout.fileno(), 1 << 16)
    assert p.poll() is None
    rest, err = p.communicate(b"Good bye.", timeout=120)
    assert p.returncode == 0, err
    (tmp_path / "o.wav").write_bytes(first + rest)
    assert soundfile.info(tmp_path / "o.wav").samplerate == 24000
    assert soundfile.info(tmp_path / "o.wav").duration > 2
    assert b"wrote to standard output" in err


def test_speech_without_a_header():
    p = start("run_tts", *speech("--text", "Hello there.", "-", "--raw", "--raw-format", "f32le"))
    out, err = p.communicate(timeout=120)
    pcm = np.frombuffer(out, "<f4")
    assert p.returncode == 0, err
    assert len(pcm) % 1920 == 0
    assert 0.01 < np.abs(pcm).max() <= 1


def test_a_player_that_ends_early_ends_the_speech():
    p = start("run_tts", *speech("--text", "Hello there, how are you? " * 20, "-"))
    os.read(p.stdout.fileno(), 4096)
    p.stdout.close()
    assert p.wait(120) == 1
    assert b"Traceback" not in p.stderr.read()


CLASHES = {
    "json and a reply": (run_inference, ["q.wav", "-", "--json"], "cannot both go to standard output"),
    "json and speech": (run_tts, ["--text", "x", "-", "--json"], "cannot both go to standard output"),
    "raw reply in a file": (run_inference, ["q.wav", "o.wav", "--raw"], "--raw alone is for sound on standard output"),
    "raw speech in a file": (run_tts, ["--text", "x", "o.wav", "--raw"], "--raw is for sound on standard output"),
    "a talk": (local, ["--input", "q.wav", "--output", "-"], "words of the talk go to standard output"),
    "raw microphone": (local, ["--raw", "16000"], "name one"),
}


@pytest.mark.parametrize("case", CLASHES)
def test_what_cannot_go_there(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    soundfile.write("q.wav", np.ones(24000) / 2, 24000)
    command, args, message = CLASHES[case]
    with pytest.raises(InputError, match=message):
        command.main(args)
    assert [p.name for p in tmp_path.iterdir()] == ["q.wav"]


def test_a_terminal_gets_no_sound(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "q.wav", np.ones(24000) / 2, 24000)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    with pytest.raises(MoshiError, match="standard output is a terminal"):
        run_inference.main([str(tmp_path / "q.wav"), "-"])
    assert names(run_tts.parser().parse_args(["-", "-"])) == ("-", None)
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert names(run_tts.parser().parse_args(["-", "-"])) == ("-", "-")


# Live words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [False, True])
def test_words_while_a_pipe_goes_on(question, raw):
    pcm = (np.clip(read_audio(question, 16000), -1, 1) * 32767).astype("<i2")
    data = pcm.tobytes()
    if not raw:
        buffer = io.BytesIO()
        soundfile.write(buffer, pcm, 16000, format="WAV")
        data = buffer.getvalue()
    p = start("stt", *(["--raw", "16000"] if raw else []), "-", "--model", checkpoint("tiny-stt"))
    p.stdin.write(data[: 16000 * 2 * 4])
    p.stdin.flush()
    words = os.read(p.stdout.fileno(), 1000)
    assert words.strip()
    assert p.poll() is None
    rest, err = p.communicate(data[16000 * 2 * 4 :], timeout=120)
    assert p.returncode == 0, err
    assert rest.strip()
    assert b"heard 6.3 s" in err


def test_a_transcript_of_a_pipe_is_one_of_its_recording(question, tmp_path, capsys):
    model = ["--model", str(checkpoint("tiny-stt"))]
    stt.main([str(question), "-f", "json", *model])
    expected = json.loads(capsys.readouterr().out)
    p = start("stt", "-", "-o", tmp_path / "o.json", *model)
    _, err = p.communicate(question.read_bytes(), timeout=120)
    assert p.returncode == 0, err
    assert json.loads((tmp_path / "o.json").read_text())["words"] == expected["words"]


# One bad recording among several ---------------------------------------------------------------------------------------


@pytest.fixture
def some(tmp_path, monkeypatch) -> list[str]:
    """Recordings of which only two hold sound to answer to."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("good.wav", "fine.flac", "cut.wav"):
        soundfile.write(name, 0.3 * rng.standard_normal(36000), 24000)
    Path("empty.wav").touch()
    Path("noise.mp3").write_bytes(rng.bytes(20000))
    Path("cut.wav").write_bytes(Path("cut.wav").read_bytes()[:50000])
    return ["empty.wav", "good.wav", "noise.mp3", "missing.wav", "cut.wav", "fine.flac"]


def test_transcripts_of_the_others_are_written(some, capsys):
    code = stt.main([*some, "--output-dir", "texts", "--batch", "2", "--model", str(checkpoint("tiny-stt"))])
    err = capsys.readouterr().err
    assert code == 1
    assert sorted(os.listdir("texts")) == ["cut.txt", "fine.txt", "good.txt"]
    for told in ("error: empty.wav is empty.", "error: noise.mp3 is not an audio", "missing.wav does not exist", "cut.wav is cut short: 1.0 of 1.5 s"):  # fmt: skip
        assert err.count(told) == 1, told


def test_replies_to_the_others_are_written(some, tiny_checkpoint, capsys):
    soundfile.write("silent.wav", np.zeros(24000), 24000)
    args = ["--batch", "replies", "--model", str(tiny_checkpoint), "--no-compile", "--tail", "0", "--json"]
    code = run_inference.main([*some, "silent.wav", *args])
    out, err = capsys.readouterr()
    assert code == 1
    assert sorted(os.listdir("replies")) == sorted(f"{n}.{e}" for n in ("cut", "fine", "good") for e in ("txt", "wav"))
    for told in ("error: empty.wav is empty.", "error: silent.wav holds nothing but digital silence", "cut.wav is cut short: 1.0 of 1.5 s"):  # fmt: skip
        assert err.count(told) == 1, told
    replies = {r["input"]: r for r in json.loads(out)["replies"]}
    assert sorted(name for name, r in replies.items() if "error" in r) == ["empty.wav", "missing.wav", "noise.mp3", "silent.wav"]  # fmt: skip
    assert soundfile.info("replies/good.wav").frames == 36000


def test_where_none_is_left(some, capsys):
    """Nothing is loaded for nothing."""
    assert stt.main(["empty.wav", "noise.mp3"]) == 1
    assert run_inference.main(["empty.wav", "noise.mp3", "--batch", "out", "--demo"]) == 1
    assert not Path("out").exists()
    with pytest.raises(MoshiError, match=r"empty\.wav is empty"):
        stt.main(["empty.wav"])


# The end of an answer --------------------------------------------------------------------------------------------------


def test_an_answer_is_heard_to_its_end(tmp_path, capsys):
    """The question of the demo ends with its recording; by default the reply does not."""
    run_inference.main([str(SUM), str(tmp_path / "o.wav"), "--demo", "--no-compile"])
    out, err = capsys.readouterr()
    assert out.strip() == "two plus one plus three is six"
    assert "cut after" not in err
    pcm = soundfile.read(tmp_path / "o.wav", dtype="float32")[0]
    assert np.abs(pcm[-24000:]).max() < 0.01
    assert len(pcm) / 24000 < soundfile.info(SUM).duration + 8
    run_inference.main([str(SUM), str(tmp_path / "s.wav"), "--demo", "--no-compile", "--tail", "0"])
    assert soundfile.info(tmp_path / "s.wav").frames == soundfile.info(SUM).frames * 24000 // soundfile.info(SUM).samplerate  # fmt: skip
    capsys.readouterr()
    local.main(["--input", str(SUM), "--output", str(tmp_path / "l.wav"), "--demo", "--no-compile", "--fast"])
    assert capsys.readouterr().out.split() == out.split()
    same = soundfile.read(tmp_path / "l.wav", dtype="float32")[0]
    np.testing.assert_array_equal(same, pcm)


def test_an_answer_that_never_ends_is_told(tiny_checkpoint, tmp_path, capsys):
    """A model with random weights babbles on."""
    soundfile.write(tmp_path / "q.wav", np.ones(1920 * 3) / 2, 24000)
    run_inference.main([str(tmp_path / "q.wav"), str(tmp_path / "o.wav"), "--model", str(tiny_checkpoint), "--no-compile"])  # fmt: skip
    assert (
        "q.wav: cut after 10 s, the model was still speaking; --tail SECONDS listens longer" in capsys.readouterr().err
    )
    assert soundfile.info(tmp_path / "o.wav").duration == pytest.approx(3 * 0.08 + MOST_SECONDS)


def feed(answer: Answer, plan: list[tuple[str, float]]) -> int:
    """Frames until it is over, the reply being `plan` (text, level), then silence."""
    count = 0
    for _ in answer.frames(1920):
        text, level = plan[count] if count < len(plan) else ("", 0.0)
        answer.see(text, np.full(1920, level, np.float32))
        count += 1
    return count


def test_what_silence_is():
    quiet, most = round(QUIET_SECONDS * 12.5), round(MOST_SECONDS * 12.5)
    answer = Answer(12.5)
    for _ in range(100):
        answer.see("", np.zeros(1920, np.float32))
    assert feed(answer, []) == quiet, "what was silent before does not count"
    assert not answer.cut
    assert feed(Answer(12.5), [("", 0.0)] * (quiet - 1) + [("", 0.1)]) == 2 * quiet, "a late answer"
    assert feed(Answer(12.5), [("", 0.002)] * 5) == quiet, "the codec's silence"
    assert feed(Answer(12.5), [("", 0.0)] * 5 + [(" word", 0.0)]) == 6 + quiet, "words before their sound"
    never = Answer(12.5)
    assert feed(never, [("", 0.1)] * 1000) == most
    assert never.cut


# Between two files -----------------------------------------------------------------------------------------------------


class Slow:
    """Answers every frame with itself, later than it comes."""

    def __init__(self) -> None:
        self.frames = 0

    def step(self, pcm):
        self.frames += 1
        if self.frames % 4 == 0:
            time.sleep(0.35)
        return Frame(pcm=pcm, text="", text_token=3, codes=np.zeros(8, np.int32), index=self.frames, time=0.0)

    def reset(self, seed=None):
        pass


def test_between_two_files_nothing_is_dropped(tmp_path, monkeypatch, capsys):
    x = np.repeat(np.arange(1, 31) / 100, 1920).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", x, 24000, subtype="PCM_16")
    args = ["--input", str(tmp_path / "in.wav"), "--output", str(tmp_path / "out.wav"), "--tail", "0", "--record", str(tmp_path / "r")]  # fmt: skip
    monkeypatch.setattr("moshi_mlx.commands.local.prepare", lambda *_: None)
    begun = time.monotonic()
    assert local.main(args, make_talker=lambda _: Slow()) == 0
    assert time.monotonic() - begun > 2.3, "at the pace of speech"
    heard = soundfile.read(tmp_path / "out.wav", dtype="float32")[0]
    np.testing.assert_allclose(heard, x, atol=1e-4)
    np.testing.assert_allclose(soundfile.read(tmp_path / "r" / "user.wav", dtype="float32")[0], x, atol=1e-4)
    assert " 0 frames dropped" in capsys.readouterr().err


def test_a_steady_file_wakes_and_pauses(tmp_path):
    soundfile.write(tmp_path / "in.wav", np.ones(1920 * 5) / 2, 24000)
    sides = make_sides(str(tmp_path / "in.wav"), str(tmp_path / "out.wav"), tail=0.0)
    source = sides.source
    assert isinstance(source, SteadyFileSource)
    assert sides.lossless
    source.wake()
    assert source.read(5) is None, "woken"
    assert source.read(0.001) is None, "nothing yet"
    assert source.read(5) is not None
    source.pause(True)
    time.sleep(0.3)
    source.pause(False)
    begun = time.monotonic()
    assert source.read(5) is not None
    assert time.monotonic() - begun > 0.05, "no hurry after a pause"
    sides.close()
