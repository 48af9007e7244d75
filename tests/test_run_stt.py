"""`python -m moshi_mlx.stt`, end to end on a small checkpoint in the published format."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from speech_toys import _tidy, checkpoint, loaded  # noqa: F401

from moshi_mlx import stt
from moshi_mlx.audio import streams
from moshi_mlx.errors import MoshiError
from moshi_mlx.speech_to_text import sources
from moshi_mlx.speech_to_text.live import LiveTranscriber

DURATION = 150229 / 24000


def call(*args) -> int:
    return stt.main([*(str(a) for a in args), "--model", str(checkpoint("tiny-stt"))])


def process(*args, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "moshi_mlx.stt", *(str(a) for a in args), "--model", str(checkpoint("tiny-stt"))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture
def noise(tmp_path):
    path = tmp_path / "noise.wav"
    soundfile.write(path, 0.3 * np.random.default_rng(0).standard_normal(24000 * 2), 24000)
    return path


def test_text_on_standard_output(question, capsys):
    assert call(question) == 0
    out = capsys.readouterr()
    call(question, "-f", "json")
    reply = json.loads(capsys.readouterr().out)
    assert " ".join(out.out.split()) == " ".join(reply["text"].split())
    assert reply["duration"] == pytest.approx(DURATION, abs=1e-3)
    assert len(reply["words"]) > 3
    starts = [w["start"] for w in reply["words"]]
    assert starts == sorted(starts)
    assert all(0 <= w["start"] <= w["end"] <= DURATION + 0.001 for w in reply["words"])
    assert "real-time factor" in out.err


def test_json_of_a_recording_is_its_format(question, capsys):
    for flags in (["-f", "json"], ["--json"]):
        assert call(question, *flags) == 0
        yields = json.loads(capsys.readouterr().out)
        assert yields["words"] and yields["source"].endswith(str(question))
    assert call(question, question, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.parametrize("flags", [["{q}", "-o", "-"], ["{q}", "--json"], ["-"]])
def test_a_transcript_that_nobody_would_get(question, flags):
    command = [sys.executable, "-m", "moshi_mlx.stt", *(f.format(q=question) for f in flags), "--demo"]
    done = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "error: standard output is closed; name a file.\n")


@pytest.mark.parametrize("ending", ["txt", "json", "srt", "vtt"])
def test_files_in_every_format(question, tmp_path, capsys, ending):
    call(question, "-o", tmp_path / f"o.{ending}")
    call(question, "-f", ending)
    printed = capsys.readouterr().out
    written = (tmp_path / f"o.{ending}").read_text()
    assert written.split() == printed.split()
    if ending in ("srt", "vtt"):
        assert " --> " in written


def test_many_recordings(question, noise, tmp_path, capsys):
    """Side by side or one after the other, the transcripts are the same."""
    shutil.copy(question, tmp_path / "again.wav")
    files = [question, noise, tmp_path / "again.wav"]
    call(*files, "--output-dir", tmp_path / "a", "-f", "txt", "-f", "json", "--batch", 2)
    call(*files, "--output-dir", tmp_path / "b", "-f", "json")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(
        f"{n}.{e}" for n in ("again", "noise", "question") for e in ("json", "txt")
    )
    for name in ("again", "noise", "question"):
        assert (tmp_path / "a" / f"{name}.json").read_text() == (tmp_path / "b" / f"{name}.json").read_text()
    capsys.readouterr()
    call(*files, "-f", "json", "--batch", 3)
    assert [t["source"] for t in json.loads(capsys.readouterr().out)] == [str(f) for f in files]
    call(*files)
    assert capsys.readouterr().out.count("== ") == 3


def test_both_timing_rules(question, capsys):
    words = []
    for rule in ("offline", "streaming"):
        call(question, "-f", "json", "--timing", rule)
        words.append(json.loads(capsys.readouterr().out)["words"])
    assert words[0] != words[1]


def test_a_pipe(question, capsys):
    call(question, "-f", "json")
    expected = json.loads(capsys.readouterr().out)
    with question.open("rb") as f:
        p = process("-", "-f", "json", stdin=f)
        out, err = p.communicate(timeout=300)
    assert p.returncode == 0, err
    assert json.loads(out)["words"] == expected["words"]


def test_one_damaged_recording_among_others(question, tmp_path, capsys):
    soundfile.write(tmp_path / "nan.wav", np.full(24000, np.nan, np.float32), 24000, subtype="FLOAT")
    code = call(question, tmp_path / "nan.wav", "--output-dir", tmp_path / "o", "--batch", 2)
    assert code == 1
    assert "samples that are not numbers" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "o").iterdir()] == ["question.txt"]
    with pytest.raises(MoshiError, match="not numbers"):
        call(tmp_path / "nan.wav")


def test_prompts(question, noise, capsys):
    call(question, "-f", "json")
    plain = json.loads(capsys.readouterr().out)
    call(question, "-f", "json", "--prompt-audio", noise)
    prompted = json.loads(capsys.readouterr().out)
    call(question, "-f", "json", "--prompt-audio", noise, "--keep-prompt")
    kept = json.loads(capsys.readouterr().out)
    assert prompted["text"] != plain["text"]
    assert kept["text"].endswith(prompted["text"])
    assert len(kept["text"]) > len(prompted["text"])
    call(question, "--prompt-text", "hello world " * 40)
    assert "the prompt text was not found at its beginning" in capsys.readouterr().err


# Live -----------------------------------------------------------------------------------------------------------------


def test_a_file_as_the_microphone(question, capsys):
    call("--input", question, "--json")
    out = capsys.readouterr()
    events = [json.loads(line) for line in out.out.splitlines()]
    assert {e["type"] for e in events} <= {"word", "end_of_word", "end_of_turn"}
    assert all(0 <= e.get("start", 0) <= DURATION + 0.08 for e in events)
    turns = [e for e in events if e["type"] == "end_of_turn"]
    words = [e["text"] for e in events if e["type"] == "word"]
    assert " ".join(w for t in turns for w in t["text"].split()) == " ".join(" ".join(words).split())
    assert "heard 6.3 s" in out.err
    call("--input", question, "--times", "--no-vad")
    assert "end of turn" not in capsys.readouterr().out


class FakePortAudio(types.SimpleNamespace):
    """One microphone, whose callback runs on a thread of its own and delivers a recording, then silence, ever faster."""

    class PortAudioError(Exception):
        pass

    class CallbackAbort(Exception):
        pass

    default = types.SimpleNamespace(device=(0, -1))

    def __init__(self, pcm: np.ndarray, pause: float):
        super().__init__(pcm=pcm, pause=pause, blocks=0)

    def query_hostapis(self):
        return [{"name": "fake", "default_input_device": 0, "default_output_device": -1}]

    def query_devices(self):
        return [{"name": "mic", "hostapi": 0, "max_input_channels": 1, "max_output_channels": 0, "default_samplerate": 24000}]  # fmt: skip

    def check_input_settings(self, **_):
        pass

    def InputStream(self, callback, blocksize, finished_callback, **_):
        stop = threading.Event()

        def record():
            at = 0
            while not stop.is_set():
                block = np.zeros((blocksize, 1), np.float32)
                piece = self.pcm[at : at + blocksize]
                block[: len(piece), 0] = piece
                at += blocksize
                try:
                    callback(block, blocksize, types.SimpleNamespace(currentTime=0.0, inputBufferAdcTime=0.0), None)
                except self.CallbackAbort:
                    finished_callback()
                    return
                self.blocks += 1
                stop.wait(self.pause)

        thread = threading.Thread(target=record, daemon=True)
        return types.SimpleNamespace(
            start=thread.start, abort=lambda **_: (stop.set(), thread.join()), close=lambda **_: None, active=True
        )


def test_the_microphone_is_never_waited_for(question, monkeypatch, capsys):
    """A model that waits for the microphone, not the reverse: old sound is given up and counted, Ctrl-C ends it cleanly."""
    pcm, _ = soundfile.read(question, dtype="float32")
    sd = FakePortAudio(pcm, pause=0.0005)
    monkeypatch.setattr("moshi_mlx.audio.devices.portaudio", lambda: sd)
    monkeypatch.setattr(sources, "BACKLOG_SECONDS", 1.0)
    listen, frames = LiveTranscriber.feed, []

    def slow(self, frame):
        frames.append(frame)
        wanted = sd.blocks + 100
        for _ in range(60_000):
            if sd.blocks >= wanted:
                break
            time.sleep(0.001)
        else:
            pytest.fail("the callback was held up")
        if len(frames) == 10:
            raise KeyboardInterrupt
        return listen(self, frame)

    monkeypatch.setattr(LiveTranscriber, "feed", slow)
    assert call() == 0
    out = capsys.readouterr()
    assert "listening; end with Ctrl-C" in out.err
    assert "frames lost because the machine was too slow" in out.err
    assert all(f.shape == (1920,) for f in frames)
    assert sd.blocks >= 1000


def test_a_microphone_that_goes_away(question, monkeypatch):
    sd = FakePortAudio(np.zeros(0, np.float32), pause=30)
    monkeypatch.setattr("moshi_mlx.audio.devices.portaudio", lambda: sd)
    monkeypatch.setattr(streams, "START_SECONDS", 0.1)
    monkeypatch.setattr(streams, "STALL_SECONDS", 0.1)
    source = sources.open_source(None, None)
    source.begin()
    with pytest.raises(MoshiError, match=r"mic delivers no sound. Connect it again"):
        list(source.frames())


BAD = {
    "missing": (lambda d, q: [d / "no.wav"], "does not exist"),
    "a folder": (lambda d, q: [d], "is a folder"),
    "no audio": (lambda d, q: [d / "t.txt" if (d / "t.txt").write_text("hello") else 0], "not an audio file"),
    "unknown format": (lambda d, q: [q, "-o", d / "o.doc"], "should end in .txt, .json, .srt, .vtt"),
    "no folder": (lambda d, q: [q, "-o", d / "no" / "o.txt"], "make it first"),
    "two outputs": (lambda d, q: [q, "-o", d / "o.txt", "--output-dir", d], "not both"),
    "many into one": (lambda d, q: [q, d / "p.wav", "-o", d / "o.txt"], "several recordings need --output-dir"),
    "formats": (lambda d, q: [q, "-f", "txt", "-f", "srt"], "several formats need --output-dir"),
    "format and ending": (
        lambda d, q: [q, "-o", d / "o.json", "-f", "srt"],
        "will be json by its ending, but --format srt was given",
    ),
    "live JSON in a file": (lambda d, q: [q, "-o", d / "o.txt", "--json"], "--json is for live words"),
    "live times": (lambda d, q: [q, "--times"], "--times is for live words"),
    "standard input twice": (lambda d, q: ["-", q, "-", "--output-dir", d], r"standard input \(-\) was named twice"),
    "same names": (lambda d, q: [q, q, "--output-dir", d], "different names"),
    "batch": (lambda d, q: [q, "--batch", 0], "--batch should be 1 or more"),
    "live and files": (lambda d, q: [q, "--input", q], "not both"),
    "live and output": (lambda d, q: ["--input", q, "-o", d / "o.txt"], "live words go to standard output"),
    "empty prompt": (lambda d, q: [q, "--prompt-text", " "], "--prompt-text is empty"),
    "long prompt": (lambda d, q: [q, "--prompt-text", "hello " * 400], "more than the model's window of 375 steps"),
    "keep nothing": (lambda d, q: [q, "--keep-prompt"], "--keep-prompt needs --prompt-audio"),
    "head": (lambda d, q: ["--input", q, "--pause-head", 7], "pause heads 0 to 3, found 7"),
    "threshold": (lambda d, q: ["--input", q, "--pause-threshold", 2], "between 0 and 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, question, tmp_path):
    make, message = BAD[case]
    with pytest.raises(MoshiError, match=message):
        call(*make(tmp_path, question))


def test_other_models_are_refused(tiny_checkpoint, question):
    with pytest.raises(
        MoshiError, match="is a dialogue model; use python -m moshi_mlx.local. stt runs speech-to-text models"
    ):
        stt.main([str(question), "--model", str(tiny_checkpoint)])


def test_a_tokenizer_that_is_missing(question, tmp_path, capsys):
    folder = shutil.copytree(checkpoint("tiny-stt"), tmp_path / "c")
    [tokenizer] = folder.glob("*.model")
    tokenizer.unlink()
    with pytest.raises(MoshiError, match=f"lacks the tokenizer '{tokenizer.name}'; put it there or name it with"):
        stt.main([str(question), "--model", str(folder)])
    # Before anything is announced, let alone read.
    assert "memory" not in capsys.readouterr().err


def test_turns_without_heads(question, tmp_path):
    folder = shutil.copytree(checkpoint("tiny-stt"), tmp_path / "c")
    tensors = mx.load(str(folder / "model.safetensors"))
    kept = {k: v for k, v in tensors.items() if not k.startswith("extra_heads")}
    mx.save_safetensors(str(folder / "model.safetensors"), kept)
    assert stt.main(["--input", str(question), "--model", str(folder)]) == 0
    with pytest.raises(MoshiError, match="no pause predictor"):
        stt.main(["--input", str(question), "--vad", "--model", str(folder)])


def test_a_configuration_without_delays(question, tmp_path, capsys):
    folder = shutil.copytree(checkpoint("tiny-stt"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    del config["stt_config"]
    (folder / "config.json").write_text(json.dumps(config))
    stt.main([str(question), "--model", str(folder)])
    assert "'stt_config' is missing" in capsys.readouterr().err


def test_no_sound_card(tmp_path):
    """Whatever this machine has, there is an answer in one sentence."""
    p = process("--input-device", "no such microphone")
    _, err = p.communicate(timeout=120)
    assert p.returncode == 1
    assert err.startswith(b"error: ")
    assert b"Traceback" not in err


def test_interrupt_leaves_nothing(tmp_path):
    soundfile.write(tmp_path / "long.wav", 0.1 * np.random.default_rng(0).standard_normal(24000 * 900), 24000)
    p = process(tmp_path / "long.wav", "-o", tmp_path / "o.srt")
    while b"memory" not in p.stderr.readline():
        pass
    time.sleep(1.0)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130, err
    assert b"Traceback" not in err
    assert [f.name for f in tmp_path.iterdir()] == ["long.wav"]


# Scripts of the published package -------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [True, False])
def test_a_published_script_runs(question, heads):
    """Kyutai's file transcription: single files loaded by hand, one step per frame, the pause predictor where there is one."""
    import sentencepiece

    from moshi_mlx import models, utils

    folder = checkpoint("tiny-stt")
    raw = json.loads((folder / "config.json").read_text())
    config = models.LmConfig.from_config_dict(raw)
    model = models.Lm(config)
    model.set_dtype(mx.bfloat16)
    model.load_pytorch_weights(str(folder / raw["moshi_name"]), config, strict=True)
    tokenizer = sentencepiece.SentencePieceProcessor(str(folder / raw["tokenizer_name"]))
    mimi = models.mimi.Mimi(loaded("tiny-stt").mimi.cfg)
    mimi.load_pytorch_weights(str(folder / raw["mimi_name"]), strict=True)
    model.warmup()
    gen = models.LmGen(
        model=model,
        max_steps=4096,
        text_sampler=utils.Sampler(top_k=25, temp=0),
        audio_sampler=utils.Sampler(top_k=250, temp=0.8),
        check=False,
    )
    audio, _ = soundfile.read(question, dtype="float32")
    audio = mx.concatenate([mx.array(audio)[None], mx.zeros((1, 48000))], axis=-1)
    text, ends = "", 0
    for start in range(0, audio.shape[-1] // 1920 * 1920, 1920):
        codes = mimi.encode_step(audio[:, None, start : start + 1920]).transpose(0, 2, 1)
        if heads:
            token, pauses = gen.step_with_extra_heads(codes[0])
            ends += pauses[2][0, 0, 0].item() > 0.5
        else:
            token = gen.step(codes[0])
        token = token[0].item()
        assert gen.last_audio_tokens() is None
        if token not in (0, 3):
            text += tokenizer.id_to_piece(token).replace("\u2581", " ")
    assert len(text) > 20
    assert bool(ends) == heads


@pytest.mark.slow
def test_an_hour_in_constant_memory(tmp_path):
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(tmp_path / "hour.wav", "w", 24000, 1) as f:
        for _ in range(3600):
            f.write(0.1 * rng.standard_normal(24000))
    for live in (False, True):
        files = (
            ["--input", str(tmp_path / "hour.wav")]
            if live
            else [str(tmp_path / "hour.wav"), "-o", str(tmp_path / "o.json")]
        )
        code = f"""
import sys
import mlx.core as mx
from moshi_mlx import stt
from moshi_mlx.speech_to_text.listener import Listener
hear, seen, steps = Listener.hear, [], 0
def watched(self, *args):
    global steps
    steps += 1
    if steps in (1000, 44000):
        mx.clear_cache()
        seen.append((int(open('/proc/self/statm').read().split()[1]) * 4096, mx.get_active_memory()))
    return hear(self, *args)
Listener.hear = watched
stt.main([*{files!r}, '--model', {str(checkpoint("tiny-stt"))!r}])
print(seen, steps, file=sys.stderr)
(rss1, mlx1), (rss2, mlx2) = seen
assert rss2 < rss1 + 40e6 and mlx2 <= mlx1 + 1e6, seen
"""
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=3600, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
    reply = json.loads((tmp_path / "o.json").read_text())
    assert reply["duration"] == 3600
    assert 3590 < reply["words"][-1]["end"] <= 3600
