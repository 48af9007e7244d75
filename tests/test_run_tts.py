"""`python -m moshi_mlx.run_tts`, end to end on small checkpoints in the published format."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file
from speech_toys import _tidy, checkpoint  # noqa: F401

from moshi_mlx import local, run_inference, run_tts
from moshi_mlx.checkpoint import hub
from moshi_mlx.errors import CheckpointError, MoshiError
from moshi_mlx.text_to_speech import loudspeaker
from moshi_mlx.text_to_speech.loudspeaker import Loudspeaker, Queue
from moshi_mlx.text_to_speech.text_sources import pieces_of

TEXT = 'Hello there, how are you? <break time="0.5s"/> Good morning.'
WORDS = ["Hello", "there,", "how", "are", "you?", "Good", "morning."]


def arguments(*args, preset="tiny-tts") -> list[str]:
    folder = checkpoint(preset)
    voices = [] if preset == "tiny-tts-prefix" else ["--voice-repo", str(folder / "voices")]
    return [str(a) for a in args] + ["--model", str(folder), "--seed", "3", *voices]


def call(*args, **options) -> int:
    return run_tts.main(arguments(*args, **options))


def process(*args, env=None, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "moshi_mlx.run_tts", *arguments(*args)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})}, **options,
    )  # fmt: skip


def test_a_text_file(tmp_path, capsys):
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8-sig")
    call(tmp_path / "t.txt", tmp_path / "o.wav", "--voice", "a.wav", "--json", "--subtitles", tmp_path / "o.srt")
    out = capsys.readouterr()
    reply = json.loads(out.out)
    assert [w["word"] for w in reply["words"]] == WORDS
    assert reply["text"] == " ".join(WORDS)
    pcm, rate = soundfile.read(tmp_path / "o.wav", dtype="float32")
    assert rate == 24000
    assert len(pcm) / rate == pytest.approx(reply["duration"])
    assert np.abs(pcm).max() > 0.01
    assert reply["words"][-1]["end"] <= reply["duration"]
    srt = (tmp_path / "o.srt").read_text()
    assert srt.startswith("1\n00:00:00,160 --> ")
    assert "Hello there, how are you?" in srt
    assert "real-time factor" in out.err
    assert f"wrote {tmp_path / 'o.wav'}" in out.err


def test_text_that_trickles_in_sounds_like_text_that_is_there(tmp_path):
    """Standard input in odd pieces, a character cut in two."""
    text = TEXT.replace("Good", "C'est \u00e9t\u00e9")
    call("--text", text, tmp_path / "whole.wav", "--voice", "a.wav")
    p = process("-", tmp_path / "late.wav", "--voice", "a.wav")
    raw = text.encode()
    cut = raw.index("\u00e9".encode()) + 1
    for piece in (raw[:9], raw[9:35], raw[35:cut], raw[cut:]):
        p.stdin.write(piece)
        p.stdin.flush()
        time.sleep(0.4)
    _, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    assert (tmp_path / "late.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()


def test_a_dialogue(tmp_path, capsys):
    (tmp_path / "d.txt").write_text("How are you?\n\nFine.\r\n  \nGood to hear!")
    both = ["--voice", "a.wav", "--voice", "b.wav", "--json"]
    call(tmp_path / "d.txt", tmp_path / "o.flac", "--dialogue", *both)
    told = capsys.readouterr()
    first = json.loads(told.out)
    assert "the whole text was one turn" not in told.err
    assert [w["word"] for w in first["words"]] == ["How", "are", "you?", "Fine.", "Good", "to", "hear!"]
    call(tmp_path / "d.txt", tmp_path / "p.flac", *both)
    assert "the whole text was one turn, spoken by the first voice; with --dialogue" in capsys.readouterr().err
    assert soundfile.read(tmp_path / "o.flac")[0].tobytes() != soundfile.read(tmp_path / "p.flac")[0].tobytes()


def test_requests(tmp_path):
    """The published batch format; what a request sounds like does not depend on those beside it."""
    lines = [
        {"turns": ["Hello world."], "voices": ["a.wav"], "id": "one"},
        {"turns": ["Good morning", "Yes."], "voices": ["a.wav", "b.wav"], "id": "two"},
        {"turns": ["One two three four."], "voices": ["b.wav"], "id": "three"},
    ]
    (tmp_path / "r.jsonl").write_text("\n\n".join(json.dumps(x) for x in lines) + "\n")
    assert call(tmp_path / "r.jsonl", "--out-folder", tmp_path / "a", "--batch", 2, "--nq", 8) == 0
    assert call(tmp_path / "r.jsonl", "--out-folder", tmp_path / "b", "--nq", 8, "--only-wav") == 0
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["one.wav", "three.wav", "two.wav"]
    assert len(list((tmp_path / "a").iterdir())) == 9
    for line in lines:
        wav = tmp_path / "a" / f"{line['id']}.wav"
        assert soundfile.info(wav).frames == soundfile.info(tmp_path / "b" / wav.name).frames
        record = json.loads(wav.with_suffix(".json").read_text())
        frames = load_file(wav.with_suffix(".safetensors"))["frames"]
        assert frames.shape == (8, record["end_step"] + record["final_padding"])
        assert soundfile.info(wav).frames == frames.shape[1] * 1920
        assert record["turns"] == line["turns"]
        assert [w for w, _ in record["transcript"]] == " ".join(line["turns"]).split()
        assert record["cfg_coef"] == 2.0
        assert len(record["logged_text_tokens"]) > record["end_step"]


@pytest.mark.parametrize("batch", [1, 2])
def test_requests_that_cannot_be_spoken_do_not_stop_the_others(tmp_path, capfd, batch):
    turns = ["\U0001f642 \U0001f642", "Hello world.", "a" * 5000, "Good morning.", "Ha. " + "b" * 5000]
    said = [{"turns": [t], "voices": ["a.wav"], "id": f"r{n}"} for n, t in enumerate(turns)]
    for name, some in (("a", said), ("b", [said[1], said[3]])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    args = ("--only-wav", "--batch", batch, "--nq", 4)
    assert call(tmp_path / "a.jsonl", "--out-folder", tmp_path / "a", *args) == 1
    told = capfd.readouterr().err
    assert [line.split(":")[1] for line in told.splitlines() if line.startswith("error:")] == [" r0", " r2", " r4"]
    assert "there is nothing to say" in told
    assert "2 requests" in told
    assert call(tmp_path / "b.jsonl", "--out-folder", tmp_path / "b", *args) == 0
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["r1.wav", "r3.wav"]
    for name in ("r1.wav", "r3.wav"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_voice_that_is_continued(tmp_path, question):
    call("--text", "Hello world.", tmp_path / "o.wav", "--voice", question, preset="tiny-tts-prefix")
    assert 0.5 < soundfile.info(tmp_path / "o.wav").duration < 4


def test_voices_beside_the_model_are_its_own(tmp_path, monkeypatch):
    """Named by nobody, the first of them speaks; a folder without voices is none, and the published ones are looked for."""
    model = ["--model", str(checkpoint("tiny-tts")), "--seed", "3", "--text", "Hello world."]
    assert run_tts.main([*model, str(tmp_path / "own.wav")]) == 0
    assert call("--text", "Hello world.", tmp_path / "named.wav", "--voice", "a.wav") == 0
    assert (tmp_path / "own.wav").read_bytes() == (tmp_path / "named.wav").read_bytes()

    def offline(*_, **__):
        raise CheckpointError("offline")

    bare = tmp_path / "bare"
    shutil.copytree(checkpoint("tiny-tts"), bare, ignore=shutil.ignore_patterns("*.wav*"))
    assert (bare / "voices").is_dir()
    monkeypatch.setattr(hub, "is_reachable", lambda: False)
    monkeypatch.setattr(hub, "download", offline)
    with pytest.raises(MoshiError, match="kyutai/tts-voices"):
        run_tts.main(["--model", str(bare), "--text", "Hello world.", str(tmp_path / "bare.wav")])
    assert not (tmp_path / "bare.wav").exists()


def test_quantised_after_loading(tmp_path):
    for name, more in (("q", ["--quantize", 4]), ("dense", [])):
        call("--text", "Hello.", tmp_path / f"{name}.wav", "--voice", "a.wav", *more)
    quantised, dense = (soundfile.read(tmp_path / f"{n}.wav")[0] for n in ("q", "dense"))
    assert np.isfinite(quantised).all()
    assert np.abs(quantised).max() > 0.01
    assert quantised[: len(dense)].tobytes() != dense.tobytes()


def test_speech_of_limited_length(tmp_path, capsys, monkeypatch):
    """200,000 characters are taken as they are; the limit ends them."""
    (tmp_path / "long.txt").write_text("All work and no play makes a long text. " * 5000)
    taken = []
    monkeypatch.setattr(
        "moshi_mlx.commands.run_tts.pieces_of", lambda text: (taken.append(p) or p for p in pieces_of(text))
    )
    call(tmp_path / "long.txt", tmp_path / "o.wav", "--voice", "a.wav", "--max-seconds", 2)
    assert soundfile.info(tmp_path / "o.wav").duration == 2.0
    assert "the text was not finished within --max-seconds" in capsys.readouterr().err
    # What is not spoken is not taken apart either.
    assert len(taken) == 1


def test_what_cannot_be_spoken_is_told(tmp_path, capsys):
    call("--text", "Hello \x07\U0001f389 there", tmp_path / "o.wav", "--voice", "a.wav")
    assert "left out 2 characters that cannot be spoken: U+0007 \U0001f389\n" in capsys.readouterr().err
    call("--text", "Hello \u4f60\u597d", tmp_path / "o.wav", "--voice", "a.wav")
    assert "2 letters unknown to the model may sound wrong: \u4f60 \u597d\n" in capsys.readouterr().err


def lines(path, *objects):
    path.write_text("\n".join(o if isinstance(o, str) else json.dumps(o) for o in objects))
    return path


REQUEST = {"turns": ["Hi."], "voices": ["a.wav"], "id": "x"}
BAD = {
    "empty text": (lambda d: ["--text", " \n", d / "o.wav"], "--text is empty; there is nothing to say"),
    "empty file": (lambda d: [lines(d / "e.txt"), d / "o.wav"], "e.txt is empty"),
    "emoji only": (lambda d: ["--text", "\U0001f389", d / "o.wav"], "nothing to say: left out 1 character that cannot be spoken"),
    "pause only": (lambda d: ["--text", '<break time="2s"/>', d / "o.wav"], "nothing to say: the text has no words"),
    "long pause": (lambda d: ["--text", 'a <break time="200s"/> b', d / "o.wav"], "pause of 200 s"),
    "endless word": (lambda d: ["--text", "a" * 200_000, d / "o.wav"], "separate words by spaces"),
    "missing file": (lambda d: [d / "no.txt", d / "o.wav"], "no.txt does not exist"),
    "a folder": (lambda d: [d, d / "o.wav"], "is a folder; expected a text file"),
    "not text": (lambda d: [d / "b.txt" if (d / "b.txt").write_bytes(b"\xff\xfe\x00") else 0, d / "o.wav"], "is not UTF-8 text"),
    "unknown format": (lambda d: ["--text", "Hi", d / "o.aac"], "should end in .wav"),
    "unknown subtitles": (lambda d: ["--text", "Hi", d / "o.wav", "--subtitles", d / "o.ass"], "should end in .txt"),
    "no folder": (lambda d: ["--text", "Hi", d / "no" / "o.wav"], "make it first"),
    "three names": (lambda d: ["a", "b", "c"], "found 3 names"),
    "no text": (lambda d: [], "found 0 names"),
    "two outputs": (lambda d: ["--text", "Hi", d / "o.wav", "-o", d / "p.wav"], "two outputs"),
    "unknown voice": (lambda d: ["--text", "Hi", d / "o.wav", "--voice", "nobody"], "no voice 'nobody' for this model"),
    "six voices": (lambda d: ["--text", "Hi", d / "o.wav", *["--voice", "a.wav"] * 6], "up to 5 voices, 6 were given"),
    "guidance": (lambda d: ["--text", "Hi", d / "o.wav", "--cfg-coef", 2.2], "this model knows 1.0, 1.5"),
    "too many codebooks": (lambda d: ["--text", "Hi", d / "o.wav", "--nq", 17], "has 16 codebooks, 17 were asked for"),
    "no codebooks": (lambda d: ["--text", "Hi", d / "o.wav", "--nq", 0], "--nq should be above 0"),
    "negative padding": (lambda d: ["--text", "Hi", d / "o.wav", "--final-padding", -1], "--final-padding should be 0 to 750 steps, found -1"),
    "mad bonus": (lambda d: ["--text", "Hi", d / "o.wav", "--padding-bonus", 99], "between -20 and 20, found 99"),
    "no requests": (lambda d: [lines(d / "r.jsonl", "")], "holds no requests"),
    "bad JSON": (lambda d: [lines(d / "r.jsonl", REQUEST, "{")], "line 2 is not valid JSON"),
    "missing key": (lambda d: [lines(d / "r.jsonl", {"turns": []})], "should be an object with turns, voices and id"),
    "turns no list": (lambda d: [lines(d / "r.jsonl", {**REQUEST, "turns": "Hi"})], "'turns' should be a list of texts"),
    "empty turns": (lambda d: [lines(d / "r.jsonl", {**REQUEST, "turns": ["", " "]})], "the turns are empty"),
    "id is a path": (lambda d: [lines(d / "r.jsonl", {**REQUEST, "id": "../x"})], "plain file name"),
    "same id": (lambda d: [lines(d / "r.jsonl", REQUEST, REQUEST)], "uses the id 'x' twice"),
    "requests and output": (lambda d: [lines(d / "r.jsonl", REQUEST), d / "o.wav"], "--out-folder DIR"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path):
    make, message = BAD[case]
    args = make(tmp_path)
    if "--voice" not in args:
        args = [*args, "--voice", "a.wav"]
    with pytest.raises(MoshiError, match=message):
        call(*args, "--out-folder", tmp_path / "out")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".part", ".wav")]


def test_bad_input_for_models_that_continue_a_voice(tmp_path, question):
    for args, message in (
        (["--voice", question, "--voice", question], "exactly one voice"),
        (["--voice", question, "--dialogue"], "--dialogue needs a model for several speakers"),
        (["--voice", question, "--nq", 8], "all of its 16 codebooks only"),
    ):
        with pytest.raises(MoshiError, match=message):
            call("--text", "Hi", tmp_path / "o.wav", *args, preset="tiny-tts-prefix")


def test_other_models_are_refused(tiny_checkpoint, tmp_path):
    with pytest.raises(
        MoshiError, match="is a dialogue model; use python -m moshi_mlx.local. run_tts runs text-to-speech models"
    ):
        run_tts.main(["--text", "Hi", str(tmp_path / "o.wav"), "--model", str(tiny_checkpoint)])


def test_a_tokenizer_that_is_missing(tmp_path):
    folder = shutil.copytree(checkpoint("tiny-tts"), tmp_path / "c")
    [tokenizer] = folder.glob("*.model")
    tokenizer.unlink()
    with pytest.raises(MoshiError, match=f"lacks the tokenizer '{tokenizer.name}'; put it there or name it with"):
        run_tts.main(["--text", "Hi", str(tmp_path / "o.wav"), "--model", str(folder)])
    assert not (tmp_path / "o.wav").exists()


def test_nobody_can_talk_to_it(question, tmp_path):
    for command in (run_inference, local):
        args = ["--input", question, "--output", tmp_path / "o.wav", "--fast"] if command is local else [question]
        with pytest.raises(MoshiError, match="text-to-speech model; use python -m moshi_mlx.run_tts"):
            command.main([str(a) for a in [*args, "--model", checkpoint("tiny-tts"), "--no-compile"]])
    assert not (tmp_path / "o.wav").exists()


def test_an_error_is_one_sentence(tmp_path):
    p = process("--text", "", tmp_path / "o.wav")
    _, err = p.communicate(timeout=120)
    assert p.returncode == 1
    assert err == b"error: --text is empty; there is nothing to say.\n"


def test_interrupt_leaves_nothing(tmp_path):
    (tmp_path / "long.txt").write_text("All work and no play makes a long text. " * 5000)
    p = process(tmp_path / "long.txt", tmp_path / "o.wav", "--voice", "a.wav")
    deadline = time.time() + 60
    while time.time() < deadline and not any(f.stat().st_size > 100_000 for f in tmp_path.glob(".o.wav*.part")):
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130, err
    assert b"Traceback" not in err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["long.txt"]


# The loudspeaker ------------------------------------------------------------------------------------------------------


def pulled(queue: Queue, n: int = 480) -> np.ndarray:
    out = np.full(n, 9.0, np.float32)
    queue.pull(out)
    return out


def test_nothing_is_lost_between_model_and_device():
    queue = Queue(24000)
    sound = np.linspace(0.1, 0.9, 24000, dtype=np.float32)
    assert not pulled(queue).any()
    queue.push(sound[:1920])
    # Not until there is a little more than one frame.
    assert not pulled(queue).any()
    queue.push(sound[1920:])
    queue.finish()
    heard = np.concatenate([pulled(queue) for _ in range(60)])
    fade = round(0.005 * 24000)
    np.testing.assert_array_equal(heard[fade : 24000 - 480], sound[fade : 24000 - 480])
    assert heard[0] == 0
    assert abs(heard[23999]) < 0.01
    assert not heard[24000:].any()
    assert queue.underruns == 0


def test_late_sound_fades_and_goes_on():
    queue = Queue(24000)
    queue.push(np.ones(4800, np.float32))
    heard = np.concatenate([pulled(queue, 960) for _ in range(7)])
    assert queue.underruns == 1
    assert np.abs(np.diff(heard)).max() < 0.02
    queue.push(np.ones(4800, np.float32))
    more = np.concatenate([pulled(queue, 960) for _ in range(5)])
    assert more.sum() > 4000
    assert np.abs(np.diff(more)).max() < 0.02


class FakePortAudio(types.SimpleNamespace):
    """One loudspeaker, which plays as fast as it is asked to."""

    class PortAudioError(Exception):
        pass

    class CallbackAbort(Exception):
        pass

    default = types.SimpleNamespace(device=(-1, 0))

    def __init__(self, rate=24000, broken=False):
        super().__init__(played=[], rate=rate, broken=broken, left=False)

    def query_hostapis(self):
        return [{"name": "fake", "default_input_device": -1, "default_output_device": 0}]

    def query_devices(self):
        return [{"name": "speaker", "hostapi": 0, "max_input_channels": 0, "max_output_channels": 2, "default_samplerate": self.rate}]  # fmt: skip

    def check_output_settings(self, samplerate, **_):
        if samplerate != self.rate:
            raise self.PortAudioError("invalid sample rate")

    def OutputStream(self, callback, channels, blocksize, finished_callback, **_):
        import threading

        sd, stop = self, threading.Event()

        def play():
            while not stop.wait(0.001):
                block = np.full((blocksize, channels), 9.0, np.float32)
                try:
                    callback(block, blocksize, None, None)
                except sd.CallbackAbort:
                    sd.left = True
                    finished_callback()
                    return
                sd.played.append(block)

        thread = threading.Thread(target=(lambda: None) if self.broken else play, daemon=True)
        return types.SimpleNamespace(
            start=thread.start, abort=lambda **_: (stop.set(), thread.join()), close=lambda **_: None, active=True
        )


def test_speech_on_the_loudspeaker(tmp_path, monkeypatch, capsys):
    """Everything arrives, in order, on both channels of a device with another rate."""
    sd = FakePortAudio(48000)
    monkeypatch.setattr(loudspeaker.devices, "portaudio", lambda: sd)
    call("--text", "Hello there.", tmp_path / "o.wav", "--voice", "a.wav")
    call("--text", "Hello there.", "--voice", "a.wav")
    pcm, _ = soundfile.read(tmp_path / "o.wav", dtype="float32")
    heard = np.concatenate(sd.played)
    np.testing.assert_array_equal(heard[:, 0], heard[:, 1])
    sound = np.flatnonzero(np.abs(heard[:, 0]) > 1e-6)
    # Gaps come where the model is late; nothing is missing.
    assert sound.size >= 0.9 * 2 * np.count_nonzero(np.abs(pcm) > 1e-4)
    assert "played on speaker at 48000 Hz, resampled" in capsys.readouterr().err
    # To abort a stream inside a call to a sound server can lock both.
    assert sd.left


def test_a_loudspeaker_that_stops(monkeypatch):
    monkeypatch.setattr(loudspeaker.devices, "portaudio", lambda: FakePortAudio(broken=True))
    monkeypatch.setattr(loudspeaker, "STALL_SECONDS", 0.2)
    with Loudspeaker() as device:
        device.queue.push(np.zeros(48001, np.float32))
        with pytest.raises(MoshiError, match="speaker takes no more sound"):
            device.write(np.zeros(1920, np.float32))


def test_list_devices(monkeypatch, capsys):
    from moshi_mlx.audio import devices

    monkeypatch.setattr(devices, "portaudio", lambda: FakePortAudio())
    assert run_tts.main(["--list-devices"]) == 0
    assert "speaker" in capsys.readouterr().out


@pytest.mark.slow
def test_an_hour_in_constant_memory(tmp_path):
    """45,000 steps of speech; what is kept grows by the words alone."""
    (tmp_path / "long.txt").write_text("All work and no play makes a long text. " * 1000)
    args = arguments(tmp_path / "long.txt", tmp_path / "o.wav", "--voice", "a.wav", "--max-seconds", 3600, "--nq", 4)
    code = f"""
import sys
import mlx.core as mx
from moshi_mlx import run_tts
from moshi_mlx.text_to_speech.generator import TokenGenerator
step, seen = TokenGenerator.step, []
def watched(self, *args):
    frame = step(self, *args)
    if self.offset in (1000, 44000):
        mx.clear_cache()
        seen.append((int(open('/proc/self/statm').read().split()[1]) * 4096, mx.get_active_memory()))
    return frame
TokenGenerator.step = watched
run_tts.main({args!r})
print(seen, file=sys.stderr)
(rss1, mlx1), (rss2, mlx2) = seen
assert rss2 < rss1 + 40e6 and mlx2 <= mlx1 + 1e6, seen
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=3600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert soundfile.info(tmp_path / "o.wav").duration > 3500
