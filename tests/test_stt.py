"""Speech-to-text: listening, words with times, ends of turns, prompts, transcripts as files."""

from __future__ import annotations

import json
import math
import re

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from speech_toys import BOUNDARY, PAD, TOKENIZER, ScriptedListener, _tidy, checkpoint, loaded, stream  # noqa: F401

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.audio.files import AudioReader, read_audio
from moshi_mlx.config.description import CheckpointConfig, SttConfig
from moshi_mlx.errors import ConfigError, InputError
from moshi_mlx.speech_to_text.collected import Collected
from moshi_mlx.speech_to_text.delays import delays_of
from moshi_mlx.speech_to_text.listener import Listener
from moshi_mlx.speech_to_text.live import LiveTranscriber, LiveWord, LiveWordEnd, TurnEnd
from moshi_mlx.speech_to_text.pauses import TurnDetector
from moshi_mlx.speech_to_text.prompt import TextPrompt
from moshi_mlx.speech_to_text.recording import AudioPrompt, Surroundings
from moshi_mlx.speech_to_text.timeline import Timeline
from moshi_mlx.speech_to_text.transcribe import FileTranscriber, Transcript, streaming_words
from moshi_mlx.speech_to_text.words import WordStream, offline_words, plain_text, printable
from moshi_mlx.speech_to_text.writers import FORMATS, as_srt, as_vtt, cues, format_of
from moshi_mlx.text import Word

DELAY = 0.5


def listener(batch: int = 1, **options) -> Listener:
    parts = loaded("tiny-stt")
    return Listener(parts.lm, parts.mimi, batch, **options)


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return 0.3 * np.random.default_rng(seed).standard_normal(1920 * frames).astype(np.float32)


def hear(ear: Listener, pcm: np.ndarray, chunk: int):
    """Tokens and pauses, the first step included."""
    found = [ear.read([ear.start()])] + [ear.listen(p) for p in np.split(pcm, pcm.shape[1] // (1920 * chunk), axis=1)]
    return np.concatenate([f.tokens for f in found]), np.concatenate([f.pauses for f in found])


# Listening ------------------------------------------------------------------------------------------------------------


def test_chunks_hear_what_single_frames_hear():
    pcm = noise(12)[None]
    ear = listener()
    expected, pauses = hear(ear, pcm, 1)
    assert len(set(expected[:, 0].tolist())) > 3
    assert pauses.shape == (13, 1, 4)
    ear.reset()
    tokens, others = hear(ear, pcm, 4)
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_allclose(others, pauses, atol=1e-5)


def test_rows_are_independent_and_no_frame_is_lost():
    first, second = noise(8, 1), noise(8, 2)
    both, _ = hear(listener(2), np.stack([first, second]), 1)
    for b, pcm in enumerate((first, second)):
        alone, _ = hear(listener(), pcm[None], 1)
        np.testing.assert_array_equal(both[:, b], alone[:, 0])
    # The very first frame is heard: another one in its place changes what follows.
    changed = np.concatenate([noise(1, 3), first[1920:]])
    assert (hear(listener(), changed[None], 1)[0] != hear(listener(), first[None], 1)[0]).any()


def test_warming_up_leaves_no_trace():
    pcm = noise(6)[None]
    ear = listener()
    expected, _ = hear(ear, pcm, 1)
    ear.reset()
    found = [ear.read([ear.start()]).tokens]
    ear.warm_up()
    found += [ear.listen(p).tokens for p in np.split(pcm, 6, axis=1)]
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_pause_heads_are_those_of_the_file(tmp_path):
    """A configuration may speak of heads that only another file has, and the reverse."""
    import shutil

    folder = shutil.copytree(checkpoint("tiny-stt"), tmp_path / "c")
    config = json.loads((folder / "config.json").read_text())
    del config["extra_heads_num_heads"], config["extra_heads_dim"]
    (folder / "config.json").write_text(json.dumps(config))
    assert [h.weight.shape for h in checkpoints.load(folder).lm.extra_heads] == [(6, 128)] * 4

    tensors = mx.load(str(folder / "model.safetensors"))
    mx.save_safetensors(
        str(folder / "model.safetensors"), {k: v for k, v in tensors.items() if not k.startswith("extra_heads")}
    )
    (folder / "config.json").write_text(json.dumps({**config, "extra_heads_num_heads": 4}))
    lm = checkpoints.load(folder).lm
    assert lm.extra_heads == []
    assert Listener(lm, None).read([Listener(lm, None).start()]).pauses.shape == (1, 1, 0)


def test_other_models_are_refused(tiny_checkpoint):
    with pytest.raises(InputError, match="not a speech-to-text model"):
        Listener(checkpoints.load(tiny_checkpoint).lm, None)


# Words ----------------------------------------------------------------------------------------------------------------


def test_the_last_word_is_kept_whole():
    """The reference fails here; fragments long after the last boundary are part of the last word."""
    tokens = [*stream(2, "hello"), *[PAD] * 30, *TOKENIZER.encode("world")]
    words = offline_words(tokens, TOKENIZER, 12.5, 0.0)
    assert [w.text for w in words] == ["hello", "world"]
    assert words[0].start == 3 / 12.5
    assert words[0].end == 6 / 12.5 == words[1].start


def test_an_end_that_is_marked_is_the_end():
    tokens = [*stream(2, "hello"), *[PAD] * 30, 2, *[PAD] * 5]
    [word] = offline_words(tokens, TOKENIZER, 12.5, 0.0)
    assert word.end == tokens.index(2) / 12.5 > 2.5


def test_words_of_a_whole_stream_by_the_streaming_rule():
    tokens = [*stream(7, "hello", 3, "world"), *[PAD] * 2]
    words = streaming_words(tokens, TOKENIZER, 12.5, DELAY, 0.0)
    assert words == [Word("hello", 2 / 12.5, 9 / 12.5), Word("world", 9 / 12.5, math.inf)]
    assert WordStream(TOKENIZER, 12.5, 2.5).delay_steps == 31


def test_the_rules_differ_by_little():
    tokens = stream(8, "good", 2, "morning", 4, "everyone", 3, "welcome", 12)
    offline = offline_words(tokens, TOKENIZER, 12.5, DELAY)
    streaming = streaming_words(tokens, TOKENIZER, 12.5, DELAY, 0.0)
    assert [w.text for w in offline] == [w.text for w in streaming]
    assert all(abs(a.start - b.start) <= 0.2 for a, b in zip(offline, streaming, strict=True))


def test_a_word_that_says_nothing_ends_no_other():
    """Tokens without letters are a word to the stream, not to a reader: the word before keeps its end."""
    end_of_text = 2
    tokens = [*[PAD] * 8, BOUNDARY, *TOKENIZER.encode("hello"), PAD, BOUNDARY, end_of_text, PAD, PAD, BOUNDARY, PAD]
    (word,) = streaming_words(tokens, TOKENIZER, 12.5, DELAY, 0.0)
    boundaries = [i + 1 for i, token in enumerate(tokens) if token == BOUNDARY]
    assert word.text == "hello"
    assert (word.end - word.start) * 12.5 == pytest.approx(boundaries[1] - boundaries[0])


def test_text_has_no_control_characters(question):
    """The rules spell what the tokenizer does; what is handed out can go to a terminal and into a subtitle."""
    said = [TOKENIZER.piece_to_id("<0x1B>"), *TOKENIZER.encode("hi"), TOKENIZER.piece_to_id("<0x0A>")]
    assert plain_text(said, TOKENIZER) == "\x1b hi\n"
    assert printable(plain_text(said, TOKENIZER)) == " hi "
    [found] = transcribe(question, listener(prompt=TextPrompt(said * 60)))
    assert "\x1b" in plain_text(found.tokens, TOKENIZER)
    assert "hi" in found.text
    assert found.words
    assert not any(c < " " for c in found.text + "".join(w.text for w in found.words))
    transcriber, _ = live([*[PAD] * 8, BOUNDARY, *said, *[PAD] * 8], turns=False)
    [word] = [e for events in run(transcriber, 20) for e in events if isinstance(e, LiveWord)]
    assert word.text == " hi "


# Live -----------------------------------------------------------------------------------------------------------------


def live(tokens, pauses=None, turns=True, flush=True, prefix=0.0):
    ear = ScriptedListener(tokens, pauses)
    return LiveTranscriber(ear, TOKENIZER, DELAY, prefix, TurnDetector(4) if turns else None, flush), ear


def run(transcriber, frames):
    transcriber.start()
    return [transcriber.feed(noise(1)) for _ in range(frames)]


def test_words_come_at_the_first_pad():
    transcriber, _ = live(stream(8, "hello", 2, "world", 4), turns=False)
    events = run(transcriber, 20)
    at = {type(e).__name__ + getattr(e, "text", ""): (i, e) for i, found in enumerate(events) for e in found}
    # Boundary of hello at step 9 (of which the first heard nothing), its three pieces, then a pad.
    assert at["LiveWordhello"] == (11, LiveWord("hello", 3 / 12.5))
    assert at["LiveWordEnd"] == (13, LiveWordEnd(9 / 12.5))
    assert at["LiveWordworld"] == (16, LiveWord("world", 9 / 12.5))


def test_the_end_of_a_turn_is_flushed_and_told_once():
    """Words still behind by the delay are fetched with silence, and the clock does not count it."""
    before = stream(16, "hello", 2)
    tokens = [*before, *stream(1, "world", 30)]
    pauses = [0.9] * 13 + [0.0] * (len(before) - 13) + [0.9] * 60
    transcriber, ear = live(tokens, pauses)
    events = run(transcriber, 40)
    [(frame, turn)] = [(i, e) for i, found in enumerate(events) for e in found if isinstance(e, TurnEnd)]
    assert turn.text == "hello world"
    assert frame == len(before) - 1
    assert turn.time == (frame + 1) / 12.5
    assert ear.heard_silence == math.ceil(DELAY * 12.5) + 1 == 8
    assert transcriber.seconds == 40 / 12.5
    world = next(e for e in events[frame] if isinstance(e, LiveWord) and e.text == "world")
    assert world.start <= turn.time
    assert transcriber.finish()[-1:] != [turn]


def test_without_a_flush_words_come_with_the_delay():
    tokens = [*stream(16, "hello", 2), *stream(1, "world", 30)]
    transcriber, ear = live(tokens, [0.0] * 22 + [0.9] * 60, flush=False)
    events = [e for found in run(transcriber, 40) for e in found]
    assert ear.heard_silence == 0
    assert [e.text for e in events if isinstance(e, (LiveWord, TurnEnd))] == ["hello", "hello", "world", "world"]


def test_a_stream_without_turns_keeps_nothing_of_what_was_said():
    """It may last for days."""
    transcriber, _ = live(stream(8, "hello", 2, "world", 4), turns=False)
    assert sum(isinstance(e, LiveWord) for events in run(transcriber, 20) for e in events) == 2
    assert transcriber._text._said == []


def test_speech_goes_on_after_a_flush():
    """What is said after a turn has the time at which it was said."""
    first = stream(16, "hello", 2)
    tokens = [*first, *[PAD] * 8, *stream(10, "again", 20)]
    transcriber, _ = live(tokens, [0.0] * len(first) + [0.9] + [0.0] * 100)
    events = [e for found in run(transcriber, 50) for e in found]
    again = next(e for e in events if isinstance(e, LiveWord) and e.text == "again")
    # Its boundary is the token after 10 more frames.
    assert again.start == (len(first) + 10 + 1 - 6) / 12.5


def test_silence_a_model_expects_is_not_counted():
    transcriber, ear = live(stream(13, 10, "hello", 3), prefix=1.0)
    events = [e for found in run(transcriber, 20) for e in found]
    assert ear.heard_silence == 13
    assert LiveWord("hello", (24 - 6 - 13) / 12.5) in events
    assert transcriber.seconds == 20 / 12.5


def test_the_last_word_comes_when_listening_ends():
    transcriber, _ = live(stream(10, "hello")[:-1] + [PAD] * 0, [0.0] * 50)
    run(transcriber, 12)
    events = transcriber.finish()
    assert [type(e) for e in events] == [LiveWord, TurnEnd]


def test_turns_need_words_and_a_second():
    detector = TurnDetector(4)
    high = np.full(4, 0.9)
    assert not any(detector.feed(high, spoke=i == 3) for i in range(12))
    assert detector.feed(high, spoke=False)
    assert not detector.feed(high, spoke=False)
    assert detector.feed(high, spoke=True)
    detector.feed(np.zeros(4), spoke=True)
    detector.reported()
    assert not detector.feed(high, spoke=False)


def test_detectors_are_checked():
    for options, message in (
        ({"heads": 0}, "no pause predictor.* kyutai/stt-1b-en_fr-candle has one"),
        ({"heads": 4, "head": 4}, "pause heads 0 to 3, found 4"),
        ({"heads": 4, "threshold": 1.5}, "between 0 and 1, found 1.5"),
    ):
        with pytest.raises(InputError, match=message):
            TurnDetector(**options)


def test_timeline():
    timeline = Timeline(10)
    timeline.insert(0, 5)
    timeline.insert(20, 10)
    assert [timeline.seconds(p) for p in (0, 5, 6, 20, 25, 30, 31)] == [0, 0, 0.1, 1.5, 1.5, 1.5, 1.6]


# Recordings -----------------------------------------------------------------------------------------------------------


def transcribe(path, ear=None, prompt=None, timing="offline", prefix=1.0):
    transcriber = FileTranscriber(ear or listener(), TOKENIZER, Surroundings(DELAY, prefix, prompt=prompt), timing)
    readers = [AudioReader(p) for p in (path if isinstance(path, list) else [path])]
    return transcriber(readers)


def test_a_recording_is_heard_with_its_surroundings(question):
    [found] = transcribe(question)
    pcm = read_audio(question)
    padded = np.concatenate([np.zeros(24000), pcm, np.zeros(36000)]).astype(np.float32)
    padded = np.pad(padded, (0, -len(padded) % 1920))
    expected, _ = hear(listener(), padded[None], 1)
    assert found.tokens == expected[:, 0].tolist()
    assert found.duration == len(pcm) / 24000
    assert found.text == plain_text(found.tokens, TOKENIZER).strip()
    assert found.words == [
        Word(w.text, min(w.start, found.duration), min(w.end, found.duration))
        for w in offline_words(found.tokens, TOKENIZER, 12.5, 1.0 + DELAY)
    ]
    assert found.words


def test_recordings_side_by_side(question, tmp_path):
    """Different lengths, fewer than there is room for, one after the other on the same streams."""
    soundfile.write(tmp_path / "short.wav", noise(20), 24000)
    ear = listener(3)
    together = transcribe([question, tmp_path / "short.wav"], ear)
    again = transcribe([tmp_path / "short.wav"], ear)
    assert [t.tokens for t in together] == [transcribe(p)[0].tokens for p in (question, tmp_path / "short.wav")]
    assert again[0].tokens == together[1].tokens


def test_an_audio_prompt_is_heard_and_hidden(question, tmp_path):
    prompt = noise(20)[: 20 * 1920 - 100]
    [shown] = transcribe(question, prompt=AudioPrompt(prompt, keep=True))
    [hidden] = transcribe(question, prompt=AudioPrompt(prompt))
    around = Surroundings(DELAY, 1.0, prompt=AudioPrompt(prompt))
    assert around.lead == (13 + 20 + 10) / 12.5
    assert around.hidden_tokens == 20 + int(1.5 * 12.5)
    assert hidden.tokens[: around.hidden_tokens] == [PAD] * around.hidden_tokens
    assert hidden.tokens[around.hidden_tokens :] == shown.tokens[around.hidden_tokens :]
    assert any(t > PAD for t in shown.tokens[: around.hidden_tokens])
    assert hidden.tokens != transcribe(question)[0].tokens


def test_prompts_longer_than_the_window_are_refused(question):
    with pytest.raises(InputError, match="lasts 40 s, longer than the model's window of 30 s; it would be forgotten"):
        transcribe(question, prompt=AudioPrompt(noise(500)))


def test_a_text_prompt_is_followed(question):
    """Nothing but the prompt, in order, until it has been said; then the model is free."""
    tokens = TOKENIZER.encode("hello world")
    prompt = TextPrompt(tokens)
    [found] = transcribe(question, listener(prompt=prompt))
    said = [t for t in found.tokens if t not in (BOUNDARY, PAD)]
    count = len(tokens) - found.prompt_left
    assert said[:count] == tokens[:count]
    assert prompt.left == [found.prompt_left]
    free = [t for t in transcribe(question)[0].tokens if t not in (BOUNDARY, PAD)]
    assert said != free


def test_what_a_text_prompt_allows():
    prompt = TextPrompt([7, 9], batch=2)
    logits = mx.zeros((2, 12))
    assert np.isfinite(np.array(prompt.constrain(logits))).sum(axis=1).tolist() == [3, 3]
    prompt.observe(mx.array([[7], [0]]))
    allowed = np.isfinite(np.array(prompt.constrain(logits)))
    assert np.flatnonzero(allowed[0]).tolist() == [0, 3, 9]
    assert np.flatnonzero(allowed[1]).tolist() == [0, 3, 7]
    prompt.observe(mx.array([[9], [3]]))
    assert prompt.left == [0, 2]
    assert np.isfinite(np.array(prompt.constrain(logits)))[0].all()
    prompt.reset()
    assert prompt.left == [2, 2]


def test_delays_of_configurations_that_leave_them_out():
    from random_checkpoint import TINY_STT

    def of(**changes):
        config = {k: v for k, v in TINY_STT.items() if k != "stt_config"}
        return delays_of(CheckpointConfig.from_dict({**config, **changes}))

    assert of(dim=2048, num_layers=16, num_heads=16) == SttConfig(0.5, 0.0)
    assert of(dim=2048, num_layers=48, num_heads=32) == SttConfig(2.5, 1.0)
    assert of(stt_config={"audio_delay_seconds": 1.5}) == SttConfig(1.5, 0.0)
    # As much silence as a damaged file says would be made in memory.
    for key in ("audio_delay_seconds", "audio_silence_prefix_seconds"):
        for wrong in (60.5, 1e9, -0.1):
            with pytest.raises(ConfigError, match=f"'{key}' should be at"):
                of(stt_config={key: wrong})
    assert of() is None


def test_an_unknown_timing_rule():
    with pytest.raises(InputError, match="offline or streaming, found 'exact'"):
        transcribe("x", timing="exact")


# Files ----------------------------------------------------------------------------------------------------------------

SPOKEN = Transcript(
    "a.wav",
    "Hello <there>. Good & early.",
    [Word("Hello", 0.16, 0.5), Word("<there>.", 0.5, 1.0), Word("Good", 3661.5, 3661.75), Word("&", 3661.75, 3661.75), Word("early.", 3661.75, 3662.0)],
    3662.5,
)  # fmt: skip


def test_subtitles():
    assert as_srt(SPOKEN) == (
        "1\n00:00:00,160 --> 00:00:01,000\nHello <there>.\n\n2\n01:01:01,500 --> 01:01:02,000\nGood & early.\n"
    )
    assert as_vtt(SPOKEN) == (
        "WEBVTT\n\n00:00:00.160 --> 00:00:01.000\nHello &lt;there&gt;.\n\n01:01:01.500 --> 01:01:02.000\nGood &amp; early.\n"
    )
    silent = Transcript("s.wav", "", [], 1.0)
    assert as_srt(silent) == ""
    assert as_vtt(silent) == "WEBVTT\n"


def test_names_are_no_recordings(question):
    with pytest.raises(InputError, match="recording 0 should be an AudioReader, found '.*question.wav'"):
        FileTranscriber(listener(), TOKENIZER, Surroundings(DELAY, 1.0))([str(question)])


def test_json_and_text():
    data = json.loads(FORMATS["json"](SPOKEN))
    assert data["words"][0] == {"word": "Hello", "start": 0.16, "end": 0.5}
    assert data["text"] == SPOKEN.text
    assert FORMATS["txt"](SPOKEN) == SPOKEN.text + "\n"


def test_subtitles_are_short_and_follow_each_other():
    words = [Word(f"word{i}", i * 0.3, i * 0.3 + 0.3) for i in range(100)]
    found = list(cues(words))
    assert [w for cue in found for w in cue] == words
    assert all(cue[-1].end - cue[0].start <= 6.0 for cue in found)
    assert all(sum(len(w.text) + 1 for w in cue) <= 85 for cue in found)
    # A word that seems to last over a long silence is shown with its sentence, and no longer than it takes to say.
    lonely = as_srt(Transcript("s", "", [Word("a", 0, 0.3), Word("b", 0.3, 50.0), Word("c", 50.0, 50.1)], 60))
    assert re.findall(r"(\S+) --> (\S+)\n(.*)", lonely) == [
        ("00:00:00,000", "00:00:01,300", "a b"),
        ("00:00:50,000", "00:00:50,100", "c"),
    ]


def test_what_a_server_collects_lasts_no_longer_than_it_takes_to_say():
    """Events tell the end of a word when the next begins, and nothing of the last one's."""
    collected = Collected()
    long = "antidisestablishmentarianism"
    for event in (
        LiveWord("what", 0.4),
        LiveWordEnd(0.6),
        LiveWord(long, 0.6),
        LiveWordEnd(30.0),
        LiveWord("name", 30.0),
    ):
        collected.feed([event])
    words = collected.transcript("s", 60.0, 0.08).words
    assert [(w.text, w.start, round(w.end, 3)) for w in words] == [
        ("what", 0.4, 0.6),
        (long, 0.6, 3.4),
        ("name", 30.0, 31.0),
    ]


def test_two_lines_of_the_same_length():
    words = [Word(w, i, i + 0.1) for i, w in enumerate(["several"] * 6)]
    assert "several several several\nseveral several several" in as_srt(
        Transcript("s", "", [Word(w.text, i * 0.2, i * 0.2 + 0.2) for i, w in enumerate(words)], 9)
    )


def test_formats_follow_endings():
    assert format_of("a/b.SRT") == "srt"
    with pytest.raises(InputError, match=r"should end in .txt, .json, .srt, .vtt"):
        format_of("a.doc")
