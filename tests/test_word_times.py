"""When words begin and end: in transcripts, subtitles and records, of recordings, replies and speech."""

from __future__ import annotations

import itertools
import json
import re

import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from speech_toys import checkpoint
from test_words import QUESTION, tts

from moshi_mlx import run_inference, run_tts, stt
from moshi_mlx.speech_to_text.words import within
from moshi_mlx.text import Word


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30) | st.just(float("inf"))), max_size=20).map(
        lambda pairs: [Word("w", *p) for p in sorted(pairs)]
    ),
    st.floats(0.1, 30),
)
def test_words_follow_each_other(words, duration):
    frame = 0.08
    found = within(words, duration, frame)
    assert len(found) == len(words)
    for a, b in itertools.pairwise(found):
        assert a.end <= b.start + 1e-9
    assert all(0 <= w.start <= w.end <= duration + 1e-9 for w in found)
    if len(words) * frame <= duration:
        assert all(w.end - w.start >= frame - 1e-9 for w in found)


def test_words_that_are_fine_stay_as_they_are():
    words = [Word("a", 0.5, 0.9), Word("b", 0.9, 1.2), Word("c", 2.0, 2.5)]
    assert within(words, 3.0, 0.08) == words
    assert within([Word("a", 1.0, float("inf")), Word("b", 2.0, float("inf"))], 3.0, 0.08) == [
        Word("a", 1.0, 2.0), Word("b", 2.0, 3.0),
    ]  # fmt: skip


@pytest.mark.parametrize("rule", ["offline", "streaming"])
def test_no_word_of_a_transcript_overlaps(rule, capsys):
    assert stt.main([str(QUESTION), "-f", "json", "--timing", rule, "--model", str(checkpoint("tiny-stt"))]) == 0
    words = json.loads(capsys.readouterr().out)["words"]
    for a, b in itertools.pairwise(words):
        assert a["end"] <= b["start"] + 0.001
    assert all(w["end"] - w["start"] >= 0.079 for w in words)


def in_order(words: list[dict], duration: float) -> bool:
    times = [t for w in words for t in (w["start"], w["end"])]
    return times == sorted(times) and all(0 <= t <= duration for t in times)


@pytest.mark.parametrize("seconds", [0.3, 0.8, 1.5])
def test_words_of_a_speech_that_was_cut_are_those_that_are_heard(tmp_path, capsys, seconds):
    """The text runs ahead of the sound."""
    cut = ["--max-seconds", seconds, "--padding-between", "5"]
    assert (
        run_tts.main(
            tts("--text", "one two three four", tmp_path / "o.wav", "--json", "--subtitles", tmp_path / "o.srt", *cut)
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["duration"] == soundfile.info(tmp_path / "o.wav").duration < 1.6
    assert in_order(said["words"], said["duration"])
    assert said["text"] == " ".join(w["word"] for w in said["words"]) != "one two three four"
    (tmp_path / "r.jsonl").write_text('{"turns": ["one two three four"], "voices": ["a.wav"], "id": "r"}')
    assert run_tts.main([*tts(tmp_path / "r.jsonl", "--out-folder", tmp_path / "out", *cut)]) == 0
    assert json.loads((tmp_path / "out" / "r.json").read_text())["words"] == said["words"]


def test_words_of_a_reply_end_with_it(tiny_checkpoint, capsys):
    """6.26 s are no whole number of frames."""
    assert run_inference.main([str(QUESTION), "--model", str(tiny_checkpoint), "--json", "--tail", "0"]) == 0
    [reply] = json.loads(capsys.readouterr().out)["replies"]
    assert reply["duration"] == 6.26
    assert len(reply["words"]) > 10
    assert in_order(reply["words"], reply["duration"])


@pytest.mark.parametrize("samples", [1, 1920, 12000])
@pytest.mark.parametrize("rule", ["offline", "streaming"])
def test_a_short_recording_holds_its_words(tmp_path, samples, rule):
    pcm, rate = soundfile.read(QUESTION)
    soundfile.write(tmp_path / "s.wav", pcm[:samples], rate)
    args = [
        str(tmp_path / "s.wav"),
        "--timing",
        rule,
        "--output-dir",
        str(tmp_path / "o"),
        "-f",
        "json",
        "-f",
        "srt",
        "-f",
        "vtt",
    ]
    assert stt.main([*args, "--model", str(checkpoint("tiny-stt"))]) == 0
    said = json.loads((tmp_path / "o" / "s.json").read_text())
    assert in_order(said["words"], samples / rate + 1e-3)
    for kind in ("srt", "vtt"):
        cues = re.findall("([0-9:.,]+) --> ([0-9:.,]+)", (tmp_path / "o" / f"s.{kind}").read_text())
        assert all(start < end for start, end in cues)
        assert [t for cue in cues for t in cue] == sorted(t for cue in cues for t in cue)
        assert bool(cues) == bool(said["words"])
