"""The other models of the family in libmoshi: translation, speech-to-text, PersonaPlex, Mimi alone."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
import soundfile
from native_cases import equal, export, small_rings, sound, talk
from random_checkpoint import PRESETS, write

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx import run_inference
from moshi_mlx.session import Session, hibiki
from moshi_mlx.session.voices import Voice
from moshi_mlx.speech_to_text.listener import Listener
from moshi_mlx.speech_to_text.transcribe import streaming_words

FRAMES = [70, pytest.param(500, marks=pytest.mark.slow)]


def make(folder, preset: str, context: int = 60, seed: int = 1, **changes):
    """A checkpoint of `preset` with a window that a short conversation wraps."""
    write(folder, preset, None, seed=seed)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "context": context, **changes}))
    return checkpoints.load(folder)


@pytest.fixture(autouse=True)
def rings(monkeypatch):
    small_rings(monkeypatch)


@pytest.mark.parametrize("frames", FRAMES)
@pytest.mark.parametrize("preset", ["tiny-hibiki", "tiny-hibiki-zero"])
def test_translation(native, tmp_path, preset, frames):
    """A silent frame or two, replies, the source's end and what follows; Hibiki-Zero hears one frame of silence first."""
    loaded = make(tmp_path / "model", preset)
    folder = export(loaded, tmp_path / "out")
    assert {f.name for f in folder.glob("*.mlxfn")} == {"frame.mlxfn", "hear.mlxfn", "first.mlxfn"}
    session = Session(loaded, seed=10)
    left_out = hibiki.lead_in(session)
    pcm = sound(frames)
    at = frames - 20
    replies = [session.step(p, bool(t == at)) for t, p in enumerate(pcm)]
    actions = [["step", at], ["end"], ["step", 19], ["flush"]]
    answer, arrays = native.run(folder, actions, pcm, options={"seed": 10})
    equal(answer, arrays, replies)
    assert answer["index"] == [f.index - left_out for f in replies]
    end = next((t for t, f in enumerate(replies) if t >= at and f.text_token == hibiki.EOS), frames)
    assert answer["complete"] == [0] * end + [1] * (frames - end)
    if frames == 70:
        assert end < frames, "with this seed the model ends its text"


def test_a_translation_by_the_command(native, tmp_path):
    """The same file as `run_inference` writes, cut after the last word or where the model ends it."""
    for seed, preset in ((1, "tiny-hibiki"), (2, "tiny-hibiki-zero")):
        place = tmp_path / preset
        loaded = make(place / "model", preset, seed=seed)
        folder = export(loaded, place / "out")
        soundfile.write(place / "in.wav", sound(12, seed).reshape(-1)[:-700], 24000, subtype="PCM_16")
        run_inference.main(
            [str(place / "in.wav"), str(place / "python.wav"), "--model", str(place / "model"), "--tail", "1.5"]
        )
        done = native.talk(folder, place / "in.wav", place / "native.wav", "--tail", "1.5")
        assert done.returncode == 0, done.stderr
        assert (place / "native.wav").read_bytes() == (place / "python.wav").read_bytes()


@pytest.mark.parametrize("frames", FRAMES)
def test_speech_to_text(native, tmp_path, frames):
    """Tokens of a session; pauses of a listener; words by the streaming rule."""
    loaded = make(tmp_path / "model", "tiny-stt")
    folder = export(loaded, tmp_path / "out")
    pcm = sound(frames)
    answer, arrays = native.run(folder, [["step", frames], ["flush"]], pcm)
    session = Session(loaded)
    equal(answer, arrays, talk(session, pcm))
    assert not arrays["samples"].any()
    listener = Listener(loaded.lm, loaded.mimi)
    heard = [listener.read([listener.start()]), *(listener.listen(p[None]) for p in pcm)]
    np.testing.assert_array_equal(arrays["tokens"][:, 0], [int(h.tokens[0, 0]) for h in heard[1:]])
    np.testing.assert_array_equal(arrays["pauses"], np.stack([h.pauses[0, 0] for h in heard[1:]]))
    tokens = [int(h.tokens[0, 0]) for h in heard]
    expected = streaming_words(tokens, loaded.tokenizer, 12.5, 0.5, 0.0)
    words = [[w.text.strip(), w.start, w.end if np.isfinite(w.end) else -1] for w in expected if w.text.strip()]
    assert len(words) > 3
    assert answer["words"] == [[text, pytest.approx(start), pytest.approx(end)] for text, start, end in words]


@pytest.mark.parametrize("frames", FRAMES)
def test_personaplex(native, tmp_path, frames):
    """One folder for several voices and roles; the first draw, at the end of the prompt, follows the seed."""
    loaded = make(tmp_path / "model", "tiny-personaplex", context=100)
    rng = np.random.default_rng(4)
    voices = {}
    for name, length in (("anna", 9), ("ben", 40)):
        voice = Voice(name, codes=rng.integers(0, 2048, (8, length)).astype(np.int32))
        voices[name] = voice
    plan_voices = list(voices.values())
    roles = ["be kind", "be brief, and no friend of anybody"]
    folder = export(loaded, tmp_path / "out", voices=plan_voices, text_prompts=roles)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [s["name"] for s in manifest["starts"]] == ["anna-1", "anna-2", "ben-1", "ben-2"]
    pcm = sound(frames)
    for start, seed in ((0, 0), (3, 7)):
        session = Session(loaded, seed=seed, voice=plan_voices[start // 2], text_prompt=roles[start % 2])
        answer, arrays = native.run(folder, [["step", frames]], pcm, options={"seed": seed, "start": start})
        equal(answer, arrays, talk(session, pcm))
        assert answer["index"] == list(range(frames))


@pytest.mark.parametrize("frames", FRAMES)
def test_mimi_alone(native, tmp_path, frames):
    loaded = make(tmp_path / "model", "tiny")
    folder = tmp_path / "out"
    export(loaded, folder, codec=True)
    pcm = sound(frames)
    _, arrays = native.run(folder, [["codec", frames]], pcm)
    mimi = loaded.mimi
    encoder, decoder = mimi.init_encoder(), mimi.init_decoder()
    for t, p in enumerate(pcm):
        codes, encoder = mimi.encode_chunk(mx.array(p)[None, None], encoder)
        back, decoder = mimi.decode_chunk(codes, decoder)
        np.testing.assert_array_equal(arrays["codes"][t], np.array(codes)[0, :, 0])
        np.testing.assert_array_equal(arrays["decoded"][t], np.array(back)[0, 0])


def test_presets_are_covered():
    """A new kind of model has to be exported, or refused, too."""
    assert set(PRESETS) >= {"tiny", "tiny-stt", "tiny-hibiki", "tiny-hibiki-zero", "tiny-personaplex", "tiny-tts"}
