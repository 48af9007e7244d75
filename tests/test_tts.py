"""Text-to-speech models: what is generated, when it comes out, and whose voice it is."""

from __future__ import annotations

import itertools
import json
import struct

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from huggingface_hub import errors as hub_errors
from speech_toys import _tidy, attributes, checkpoint, make_tts  # noqa: F401

from moshi_mlx.errors import CheckpointError, ConfigError, InputError
from moshi_mlx.text_to_speech import voices
from moshi_mlx.text_to_speech.tts_model import TTSModel

TEXT = 'Good morning, how are you? <break time="0.4s"/> I am fine.'
SAID = ["Good", "morning,", "how", "are", "you?", "I", "am", "fine."]
FRAME = 1920


def speak(speech, text=(), rows=1):
    """All sound and codes of a speech, given its text piece by piece, each piece as late as possible."""
    pcm, codes = [[] for _ in range(rows)], [[] for _ in range(rows)]

    def go_on():
        while speech.ready:
            frame = speech.step()
            for b in range(rows):
                pcm[b].append(frame.pcm[b])
                codes[b] += [c for c in (frame.codes[b],) if c is not None]

    for piece in text:
        speech.say(piece)
        go_on()
    speech.finish()
    go_on()
    assert speech.done
    return [np.concatenate(p) for p in pcm], [np.array(c) for c in codes]


def test_words_that_come_one_by_one_sound_the_same():
    tts = make_tts()
    [whole], _ = speak(tts.speech([attributes(tts)], seed=0), [TEXT])
    [late], _ = speak(tts.speech([attributes(tts)], seed=0), [TEXT[i : i + 3] for i in range(0, len(TEXT), 3)])
    np.testing.assert_array_equal(late, whole)


def test_sound_while_text_is_missing():
    """What is known is spoken as far as the look-ahead allows, before the text is complete."""
    tts = make_tts()
    speech = tts.speech([attributes(tts)], seed=0)
    speech.say("one two three four five six ")
    sound = 0
    while speech.ready:
        sound += len(speech.step().pcm[0])
    assert sound > 0
    assert [w.text for w in speech.words()] == ["one", "two", "three", "four"]
    assert not speech.done


def test_words_are_told_from_the_first_step_on():
    tts = make_tts()
    speech = tts.speech([attributes(tts)], seed=0)
    assert speech.words() == []
    speech.say(TEXT)
    speech.finish()
    told = [[]]
    while not speech.done:
        speech.step()
        told.append([w.text for w in speech.words()])
    assert all(late[: len(early)] == early for early, late in itertools.pairwise(told))
    assert told[-1] == SAID


def test_nothing_is_added_to_a_finished_text():
    tts = make_tts()
    speech = tts.speech([attributes(tts)], seed=0)
    speech.say("hello")
    speech.finish()
    speech.finish()
    for late in (lambda: speech.say("more"), speech.end_turn):
        with pytest.raises(InputError, match="finished, and nothing can be added"):
            late()
    while not speech.done:
        speech.step()
    with pytest.raises(InputError, match="nothing can be added"):
        speech.say("goodbye")
    assert [w.text for w in speech.words()] == ["hello"]


@pytest.mark.parametrize("text", [None, b"bytes", 3])
def test_what_is_no_text_is_not_said(text):
    tts = make_tts()
    with pytest.raises(InputError, match="the text should be text, found"):
        tts.speech([attributes(tts)], seed=0).say(text)


def test_the_first_sound_comes_after_the_delays():
    tts = make_tts()
    speech = tts.speech([attributes(tts)], seed=0)
    speech.say("Hello to all of you")
    speech.finish()
    steps = 1
    while not len(speech.step().pcm[0]):
        steps += 1
    assert steps == tts.delay_steps + tts.lm.cfg.max_delay + 1 == 19


def test_nothing_is_lost_at_the_end():
    tts = make_tts()
    speech = tts.speech([attributes(tts)], seed=0)
    [pcm], [codes] = speak(speech, [TEXT])
    end = speech.generator.states[0].end_step
    assert len(pcm) == (end + tts.final_padding) * FRAME
    assert codes.shape == (end + tts.final_padding, 16)
    assert codes.min() >= 0
    assert np.abs(pcm).max() > 0
    words = speech.words()
    assert [w.text for w in words] == SAID
    assert all(a.end <= b.start for a, b in itertools.pairwise(words))
    # The pause is no part of the word before it.
    assert words[5].start - words[4].end > 0.4
    assert words[-1].end == end / 12.5


def test_streamed_sound_is_the_decoded_frames():
    tts = make_tts()
    [pcm], [codes] = speak(tts.speech([attributes(tts)], seed=0), [TEXT])
    result = tts.generate([tts.prepare_script([TEXT], 1)], [attributes(tts)])
    frames = np.concatenate([np.array(f) for f in result.frames], axis=-1)
    np.testing.assert_array_equal(frames[0].T, codes)
    whole = np.array(tts.mimi.decode(mx.array(frames)))[0, 0]
    np.testing.assert_allclose(pcm, np.clip(whole, -1, 1), atol=1e-5)
    assert result.end_steps[0] == len(codes) - tts.final_padding
    assert [w for w, _ in result.all_transcripts[0]] == SAID


def test_rows_of_a_batch_are_independent():
    """Texts of different length and voices: each row is what it is alone, and ends by itself."""
    tts = make_tts()
    texts, who = ["Hello.", TEXT, "One two three."], ["a.wav", "b.wav", "a.wav"]
    batch = tts.speech([attributes(tts, v) for v in who], seed=[0, 0, 0])
    for row, text in enumerate(texts):
        batch.say(text, row)
    pcm, codes = speak(batch, rows=3)
    for row, (text, voice) in enumerate(zip(texts, who, strict=True)):
        alone = tts.speech([attributes(tts, voice)], seed=0)
        [expected], [expected_codes] = speak(alone, [text])
        np.testing.assert_array_equal(codes[row], expected_codes)
        np.testing.assert_allclose(pcm[row], expected, atol=1e-5)
        assert batch.words(row) == alone.words()


def test_a_step_of_all_rows_after_one_of_some():
    tts = make_tts()
    speech = tts.speech([attributes(tts, "a.wav")] * 2, seed=0, own_clocks=True)
    speech.warm_up()
    speech.say("Hello.", 0)
    speech.say("Hello.", 1)
    for rows in ([0], None, (), None):
        speech.step(rows)
    assert [u.offset for u in speech.generator.utterances] == [3, 2]


def test_voices_and_guidance_matter():
    tts = make_tts()
    conditions = [
        attributes(tts, "a.wav"),
        attributes(tts, "b.wav"),
        attributes(tts, "a.wav", "b.wav"),
        tts.make_condition_attributes([tts.get_voice_path("a.wav")], 4.0),
        tts.make_condition_attributes([tts.get_voice_path("a.wav")], None),
    ]
    said = [speak(tts.speech([c], seed=0), ["Hello you."])[1][0].tobytes() for c in conditions]
    assert len(set(said)) == len(said)


def test_fewer_codebooks():
    tts = make_tts(n_q=5)
    [pcm], [codes] = speak(tts.speech([attributes(tts)], seed=0), ["Hello."])
    assert codes.shape[1] == 5
    assert len(pcm) == len(codes) * FRAME


def test_a_seed_repeats_what_was_said():
    tts = make_tts(temp=0.8)
    first, second, other = (speak(tts.speech([attributes(tts)], seed=s), ["Hello."])[1][0].tobytes() for s in (1, 1, 2))
    assert first == second != other


def test_a_model_that_continues_a_clip(question):
    """The sound begins after the clip, for every text; guidance and the clip itself matter."""
    tts = make_tts("tiny-tts-prefix")
    prefix = tts.get_prefix(question)
    assert prefix.shape == (17, 79 - voices.DROPPED_FRAMES)
    said = []
    for clip, coef in ((prefix, 1.0), (prefix, 2.0), (prefix[:, :20], 2.0)):
        tts.cfg_coef = coef
        speech = tts.speech([tts.make_condition_attributes()], [clip], seed=0)
        [pcm], [codes] = speak(speech, ["Hello world."])
        end = speech.generator.states[0].end_step
        assert len(pcm) == (end - clip.shape[1] + tts.final_padding) * FRAME
        assert speech.words()[0].start == 2 / 12.5
        said.append(codes[:8].tobytes())
    assert len(set(said)) == 3


def test_prefixes_of_different_length_in_one_batch(question):
    tts = make_tts("tiny-tts-prefix", cfg_coef=2.0)
    prefix = tts.get_prefix(question)
    clips, none = [prefix[:, :30], prefix[:, :50]], tts.make_condition_attributes()
    batch = tts.speech([none, none], clips, seed=[0, 0])
    for row in range(2):
        batch.say("Hello world.", row)
    _, codes = speak(batch, rows=2)
    for row, clip in enumerate(clips):
        _, [alone] = speak(tts.speech([none], [clip], seed=0), ["Hello world."])
        np.testing.assert_array_equal(codes[row], alone)


def test_hooks_and_frames_of_generate():
    tts = make_tts()
    frames, texts, audios = [], [], []
    result = tts.generate(
        [tts.prepare_script(["Hello."], 1)],
        [attributes(tts)],
        on_frame=frames.append,
        on_text_hook=lambda t: texts.append(t.shape),
        on_audio_hook=lambda a: audios.append(a.shape),
    )
    assert [f.shape for f in frames] == [(1, 16)] * len(result.frames)
    assert set(texts) == {(1, 1)}
    assert set(audios) == {(1, 16, 1)}
    assert len(result.logged_text_tokens[0]) == len(texts)


def test_generation_has_a_limit():
    tts = make_tts(max_gen_length=30)
    result = tts.generate([tts.prepare_script([TEXT])], [attributes(tts)])
    assert result.end_steps == [None]
    assert len(result.frames) == 30 - tts.delay_steps - tts.lm.cfg.max_delay


# Voices ---------------------------------------------------------------------------------------------------------------


def voice_file(path, value=None, name="speaker_wavs", metadata=None):
    value = mx.zeros((1, 32, 10)) if value is None else value
    mx.save_safetensors(str(path), {name: value}, metadata or {"sig": "0badcafe", "epoch": "1"})
    return path


def of_type(path, kind: str, size: int):
    """A whole file whose voice is of another type."""
    entry = {"dtype": kind, "shape": [1, 32, 10], "data_offsets": [0, 320 * size]}
    text = json.dumps({"speaker_wavs": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes([1]) * (320 * size))
    return path


BAD_VOICES = {
    "other width": (lambda p: voice_file(p, mx.zeros((1, 16, 10))), r"shape \[1, 32, T\] .* found \[1, 16, 10\]"),
    "two voices in one": (lambda p: voice_file(p, mx.zeros((2, 32, 10))), r"found \[2, 32, 10\]"),
    "no frame": (lambda p: voice_file(p, mx.zeros((1, 32, 0))), r"found \[1, 32, 0\]"),
    "hours": (lambda p: voice_file(p, mx.zeros((1, 32, 100_000))), r"T of 1 to 1500, found \[1, 32, 100000\]"),
    "cut short": (lambda p: p.write_bytes(voice_file(p).read_bytes()[:-8]) and p, "downloaded again"),
    "empty": (lambda p: p.write_bytes(b"") or p, "downloaded again"),
    "no tensor": (lambda p: voice_file(p, name="other"), "'speaker_wavs' is missing"),
    "other model": (lambda p: voice_file(p, metadata={"sig": "1e68beda", "epoch": "240"}), "voice of another model .sig 1e68beda"),
    "NaN": (lambda p: voice_file(p, mx.full((1, 32, 10), mx.nan)), "NaN"),
    "doubles": (lambda p: of_type(p, "F64", 8), "v.safetensors: the voice has the type F64, expected F32, F16, BF16; save it in float32"),
    "integers": (lambda p: of_type(p, "I32", 4), "the voice has the type I32, expected F32"),
    "small floats": (lambda p: of_type(p, "F8_E4M3", 1), "the voice has the type F8_E4M3, expected F32"),
    "not filled": (lambda p: voice_file(p, mx.zeros((1, 32, 10))), "holds nothing but zeros; it was not downloaded whole"),
    "text file": (lambda p: p.write_text("hello") and p, "is not a voice embedding"),
    "recording": (lambda p: soundfile.write(p, np.zeros(100), 24000, format="WAV") or p, "is not a voice embedding"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_VOICES)
def test_voice_files_are_checked(case, tmp_path):
    make, message = BAD_VOICES[case]
    with pytest.raises(CheckpointError, match=message):
        make_tts().make_condition_attributes([make(tmp_path / "v.safetensors")])


@pytest.mark.parametrize("kind", [mx.float32, mx.float16, mx.bfloat16])
def test_types_of_voices(kind, tmp_path):
    value = voices.load_speaker(voice_file(tmp_path / "v.safetensors", mx.ones((1, 32, 10), kind)), 32)
    assert value.dtype == mx.float32
    assert mx.all(value == 1).item()


def test_speaker_slots():
    tts = make_tts()
    a, b = (voices.load_speaker(tts.get_voice_path(v), 32) for v in ("a.wav", "b.wav"))
    condition = voices.speaker_condition([a, b], 5)
    assert condition.tensor.shape == (1, 50, 32)
    np.testing.assert_array_equal(condition.tensor[0, 10:20], b[0].T)
    assert np.array(condition.mask)[0].tolist() == [1] * 20 + [0] * 30
    with pytest.raises(InputError, match="up to 5 voices, 6 were given"):
        voices.speaker_condition([a] * 6, 5)
    with pytest.raises(InputError, match="same length"):
        voices.speaker_condition([a, b[:, :, :4]], 5)


def test_where_voices_are_found(tmp_path, monkeypatch):
    asked = []

    def download(repo, filename, **_):
        asked.append((repo, filename))
        raise hub_errors.EntryNotFoundError("no such file")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, name: None)
    told = []
    suffix = ".0badcafe@1.safetensors"
    here = voice_file(tmp_path / f"me.wav{suffix}")
    # The recording it was made of may lie beside it.
    (tmp_path / "me.wav").write_bytes(b"RIFF")
    assert voices.find_voice(str(tmp_path / "me.wav"), "owner/voices", suffix) == here
    assert voices.find_voice("me.wav", str(tmp_path), suffix) == here
    with pytest.raises(InputError, match="no voice 'you.wav' for this model in the folder"):
        voices.find_voice("you.wav", str(tmp_path), suffix)
    with pytest.raises(
        InputError, match="no voice 'a/you.wav' for this model: owner/voices has no file .*or a name of https"
    ):
        voices.find_voice("a/you.wav", "owner/voices", suffix, told.append)
    assert told == ["owner/voices: a voice has the licence of its folder, a: see https://huggingface.co/owner/voices"]
    told.clear()
    with pytest.raises(InputError, match="no voice 'you' for this model"):
        voices.find_voice("you", "owner/voices", suffix, told.append)
    assert told == ["owner/voices: for licences see https://huggingface.co/owner/voices"]
    with pytest.raises(InputError, match="no voice"):
        voices.find_voice("hf://other/repo/x.wav", "owner/voices", suffix)
    with pytest.raises(InputError, match="the voice file ./you.wav does not exist"):
        voices.find_voice("./you.wav", "owner/voices", suffix)
    assert asked == [("owner/voices", f"{n}{suffix}") for n in ("a/you.wav", "you")] + [
        ("other/repo", f"x.wav{suffix}")
    ]


def test_clips_are_checked(tmp_path, question):
    tts = make_tts("tiny-tts-prefix")
    soundfile.write(tmp_path / "long.wav", np.zeros(24000 * 25), 24000)
    soundfile.write(tmp_path / "short.wav", np.zeros(1920 * 2), 24000)
    with pytest.raises(InputError, match="lasts 25 s, longer than the model's window of 20 s; cut it"):
        tts.get_prefix(tmp_path / "long.wav")
    with pytest.raises(InputError, match="too short"):
        tts.get_prefix(tmp_path / "short.wav")
    with pytest.raises(InputError, match="should be an audio file"):
        tts.get_prefix(voice_file(tmp_path / "v.safetensors"))
    with pytest.raises(InputError, match="takes no voice embeddings"):
        tts.make_condition_attributes([question])
    with pytest.raises(InputError, match="need as many prefixes"):
        tts.speech([tts.make_condition_attributes()], [])


def test_guidance_is_checked():
    tts = make_tts()
    with pytest.raises(InputError, match=r"1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0; found 2.2"):
        tts.make_condition_attributes(cfg_coef=2.2)
    tts.cfg_coef = 2.0
    with pytest.raises(InputError, match="has its guidance built in"):
        tts.speech([attributes(tts)])


def test_other_models_are_refused(tiny_checkpoint):
    from moshi_mlx import checkpoint as checkpoints

    with pytest.raises(ConfigError, match="this is a moshi model; text-to-speech needs one with 'tts_config'"):
        TTSModel.from_checkpoint(checkpoints.load(tiny_checkpoint))


# Scripts of the published package -------------------------------------------------------------------------------------


def published_model(folder, quantize: int | None = None):
    """A model built by hand from single files, as those scripts do."""
    import json

    import mlx.nn as nn
    import sentencepiece

    from moshi_mlx import models
    from moshi_mlx.utils.loaders import hf_get

    raw = json.loads(hf_get(str(folder / "config.json")).read_text())
    config = models.LmConfig.from_config_dict(raw)
    config.transformer.max_seq_len = config.transformer.context
    model = models.Lm(config)
    model.set_dtype(mx.bfloat16)
    model.load_pytorch_weights(str(folder / raw["moshi_name"]), config, strict=True)
    if quantize is not None:
        nn.quantize(model.depformer, bits=quantize)
        for layer in model.transformer.layers:
            nn.quantize(layer.self_attn, bits=quantize)
            nn.quantize(layer.gating, bits=quantize)
    mimi = models.mimi.Mimi(models.mimi.MimiConfig.from_dict(json.loads((folder / "mimi.json").read_text())))
    mimi.load_pytorch_weights(str(folder / raw["mimi_name"]), strict=True)
    return TTSModel(
        model,
        mimi,
        sentencepiece.SentencePieceProcessor(str(folder / raw["tokenizer_name"])),
        voice_repo=str(folder / "voices"),
        temp=0.6,
        cfg_coef=1,
        max_padding=8,
        initial_padding=2,
        final_padding=2,
        padding_bonus=0,
        raw_config=raw,
    )


@pytest.mark.parametrize("quantize", [None, 8])
def test_a_published_script_for_whole_texts_runs(quantize):
    tts = published_model(checkpoint("tiny-tts"), quantize)
    assert tts.valid_cfg_conditionings
    coef, tts.cfg_coef = tts.cfg_coef, 1.0
    entries = [tts.prepare_script(["Hello there."])]
    conditions = [tts.make_condition_attributes([tts.get_voice_path("a.wav")], coef)]
    played = []

    def on_frame(frame):
        assert not (frame == -1).any()
        played.append(np.array(mx.clip(tts.mimi.decode_step(frame[:, :, None])[0, 0], -1, 1)))

    result = tts.generate(entries, conditions, cfg_is_no_prefix=False, cfg_is_no_text=False, on_frame=on_frame)
    assert mx.concatenate(result.frames, axis=-1).shape == (1, 16, len(played))
    assert all(p.shape == (FRAME,) for p in played)


def test_a_published_script_for_streaming_runs():
    """It has its own loop over `LmGen`, with the text machine in a hook."""
    from moshi_mlx.models.generate import LmGen
    from moshi_mlx.modules.conditioner import ConditionTensor, dropout_all_conditions
    from moshi_mlx.text_to_speech.tts_model import script_to_entries
    from moshi_mlx.utils.sampling import Sampler

    tts = published_model(checkpoint("tiny-tts"))
    condition = tts.make_condition_attributes([tts.get_voice_path("a.wav")], 2.0)
    assert len(dropout_all_conditions([condition])) == 1
    total, source = None, None
    for name, value in condition.text.items():
        found = tts.lm.condition_provider.condition_tensor(name, value)
        total = found if total is None else ConditionTensor(total.tensor + found.tensor)
    for name, value in condition.tensor.items():
        source = tts.lm.condition_provider.conditioners[name].condition(value)
    state, machine = tts.machine.new_state([]), tts.machine
    offset, frames = 0, []

    def on_text(tokens):
        tokens[:] = mx.array([machine.process(offset, state, t)[0] for t in tokens.tolist()], dtype=mx.int64)

    def on_audio(tokens):
        for q in range(tokens.shape[0]):
            if offset < tts.lm.delays[q] + tts.delay_steps:
                tokens[q] = machine.token_ids.zero

    sampler = Sampler(temp=0.0)
    gen = LmGen(
        tts.lm,
        max_steps=tts.max_gen_length,
        text_sampler=sampler,
        audio_sampler=sampler,
        cfg_coef=tts.cfg_coef,
        on_text_hook=on_text,
        on_audio_hook=on_audio,
    )

    def step():
        nonlocal offset
        given = mx.ones((1, tts.lm.n_q - tts.lm.dep_q), dtype=mx.int64) * machine.token_ids.zero
        gen.step(given, ct=total, cross_attention_src=source)
        offset += 1
        frame = gen.last_audio_tokens()
        if frame is not None and not (frame == -1).any():
            frames.append(np.array(frame)[0])

    first = True
    for line in ("Good morning to", "all of you"):
        for entry in script_to_entries(
            tts.tokenizer,
            machine.token_ids,
            tts.mimi.frame_rate,
            [line],
            multi_speaker=first and tts.multi_speaker,
            padding_between=1,
        ):
            state.entries.append(entry)
            while len(state.entries) > machine.second_stream_ahead:
                step()
        first = False
    while state.entries:
        step()
    for _ in range(tts.delay_steps + 2):
        step()

    assert [w for w, _ in state.transcript] == ["Good", "morning", "to", "all", "of", "you"]
    tts.temp = 0.0
    _, [codes] = speak(tts.speech([condition], seed=0), ["Good morning to ", "all of you"])
    assert len(frames) > 40
    np.testing.assert_array_equal(frames, codes[: len(frames)])


def test_published_names():
    import inspect

    from moshi_mlx.text_to_speech import tts_model as tts

    for name in tts.__all__:
        assert hasattr(tts, name), name
    made = list(inspect.signature(TTSModel.__init__).parameters)[1:]
    assert made == [
        "lm", "mimi", "tokenizer", "temp", "cfg_coef", "final_padding", "n_q", "max_gen_length", "padding_bonus",
        "initial_padding", "max_padding", "voice_repo", "raw_config",
    ]  # fmt: skip
    assert list(inspect.signature(TTSModel.generate).parameters)[1:] == [
        "all_entries", "attributes", "prefixes", "cfg_is_no_prefix", "cfg_is_no_text", "on_audio_hook", "on_text_hook", "on_frame",
    ]  # fmt: skip
    script = list(inspect.signature(tts.script_to_entries).parameters)
    assert script == ["tokenizer", "token_ids", "frame_rate", "script", "multi_speaker", "padding_between"]
