"""PersonaPlex from the command line and as a session: voices from everywhere, roles, and what does not fit refused."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import soundfile
import torch_files
from mlx.utils import tree_flatten
from random_checkpoint import TINY_LM, TINY_PERSONAPLEX, write

from moshi_mlx import checkpoint, local, run_inference
from moshi_mlx.audio.loudness import loudness, with_loudness
from moshi_mlx.checkpoint import Loader, loader, places
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.config.description import CheckpointConfig, as_personaplex
from moshi_mlx.engine import prefill
from moshi_mlx.errors import AudioError, CheckpointError, ConfigError, InputError, MoshiError
from moshi_mlx.models.lm import Lm
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session, personaplex, voices
from moshi_mlx.session.voices import Voice

GREEDY = {"text_sampler": Sampler(temp=0), "audio_sampler": Sampler(temp=0), "compile": False}
ROLE = "You enjoy having a good conversation."


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("personaplex")
    write(folder, "tiny-personaplex", None, seed=2)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return checkpoint.load(folder, dtype=mx.float32)


def clip(frames: int = 20, seed: int = 0) -> Voice:
    return Voice("clip", codes=np.random.default_rng(seed).integers(0, 2048, (8, frames)).astype(np.int32))


def stored(loaded, voice: Voice, dtype=mx.float32) -> Voice:
    """A clip as the published files hold it."""
    cfg, n = loaded.lm.cfg, voice.codes.shape[1]
    frames = [[3, *c, *personaplex.SINE] for c in voice.codes.T.tolist()]
    tokens = prefill.delayed(cfg, np.array(frames))
    embeddings = loaded.lm.embed(mx.array(tokens[None, :, : n - 1]))[0].astype(dtype)
    cache = np.full((17, 4), -2, np.int32)
    for position in range(n - 3, n + 1):
        cache[:, position % 4] = tokens[:, position]
    return Voice("stored", embeddings=embeddings, cache=cache)


def talk(loaded, question: Path, steps: int = 20, **options) -> np.ndarray:
    session = Session(loaded, **{**GREEDY, **options})
    pcm, _ = soundfile.read(question, dtype="float32")
    return np.array([session.step(pcm[i * 1920 : (i + 1) * 1920]).codes for i in range(steps)])


# The model ------------------------------------------------------------------------------------------------------


def test_half_of_the_depth_transformer_is_loaded(folder, loaded):
    """The other half says what the user would, which the user does."""
    assert loaded.config.model_type == "personaplex"
    assert (loaded.lm.dep_q, loaded.lm.n_q, loaded.mimi.num_codebooks) == (8, 16, 8)
    whole = Lm(CheckpointConfig.from_dict(TINY_PERSONAPLEX).lm)
    heard = Loader(locate(folder), dtype=mx.float32).estimate().weights
    all_of_it = 4 * sum(p.size for _, p in tree_flatten(whole.parameters()))
    per_step = 4 * sum(p.size for _, p in tree_flatten(whole.depformer.slices[9].parameters()))
    # Attention is stored stacked, and counted whole.
    attention = 4 * sum(
        p.size for n, p in tree_flatten(whole.depformer.slices[9].parameters()) if "self_attn" in n or "norm" in n
    )
    assert heard == all_of_it - 8 * (per_step - attention) - shared_norms(whole)


def shared_norms(lm: Lm) -> int:
    """Norms of depth layers, which the file has once and the tree sixteen times."""
    return 4 * 15 * sum(p.size for n, p in tree_flatten(lm.depformer.slices[0].parameters()) if "norm" in n)


def test_recognised_by_what_it_says_or_by_its_shape(tmp_path):
    def config(**changes) -> CheckpointConfig:
        return CheckpointConfig.from_dict({**TINY_LM, **changes})

    assert config(dep_q=16).is_personaplex
    assert config(model_type="personaplex").is_personaplex
    assert not config().is_personaplex
    assert not config(dep_q=16, model_type="tts", tts_config={"audio_delay": 1.28}).is_personaplex
    # What NVIDIA publishes says no more than this; a repository may say nothing at all.
    published = CheckpointConfig.from_dict({"model_type": "personaplex", "version": "7b-v1"})
    assert (published.lm.dep_q, published.lm.n_q, published.lm.transformer.d_model) == (16, 16, 4096)
    assert as_personaplex(published.lm).dep_q == 8
    for slices, expected in ((16, "personaplex"), (8, "moshi")):
        mx.save_safetensors(
            str(tmp_path / "model.safetensors"), {f"linears.{k}.weight": mx.zeros((1, 1)) for k in range(slices)}
        )
        silent = loader._run_as(CheckpointConfig.from_dict({}), WeightsFile(tmp_path / "model.safetensors"))
        assert (silent.model_type, silent.lm.dep_q) == (expected, 8)


def test_packed_file_in_the_mlx_layout(folder, loaded, question, tmp_path):
    """All sixteen slices stored, half of them read."""
    import mlx.nn as nn

    config = CheckpointConfig.from_dict(json.loads((folder / "config.json").read_text()))
    lm = Lm(config.lm)
    checkpoint.load_lm_file(lm, folder / "model.safetensors", dtype=mx.float32)
    nn.quantize(lm, 32, 8)
    copy = shutil.copytree(folder, tmp_path / "packed")
    mx.save_safetensors(str(copy / "model.safetensors"), dict(tree_flatten(lm.parameters())))
    packed = checkpoint.load(copy)
    assert packed.precision == "affine 8 bit, group 32"
    assert packed.lm.dep_q == 8
    assert talk(packed, question, 3, voice=clip(), text_prompt=ROLE).shape == (3, 8)


# Prompts --------------------------------------------------------------------------------------------------------


def test_conversation_begins_after_the_prompt(loaded, question):
    session = Session(loaded, voice=clip(), text_prompt=ROLE, **GREEDY)
    expected = 20 + 6 + len(loaded.tokenizer.encode(f"<system> {ROLE} <system>")) + 6
    assert int(session.state["lm"]["offset"].item()) == expected
    assert session.frames == 0
    frame = session.step(np.zeros(1920, np.float32))
    assert (frame.index, frame.time, session.frames) == (0, 0.0, 1)
    # The first frame is the model's own already.
    assert frame.codes.min() >= 0
    assert frame.codes.tolist() != list(personaplex.SILENCE)
    pcm, _ = soundfile.read(question, dtype="float32")
    first = [session.step(pcm[i * 1920 : (i + 1) * 1920]).codes.tolist() for i in range(3)]
    session.reset()
    session.step(np.zeros(1920, np.float32))
    assert first == [session.step(pcm[i * 1920 : (i + 1) * 1920]).codes.tolist() for i in range(3)]


def test_voice_and_role_matter(loaded, question):
    said = {
        name: talk(loaded, question, **options).tobytes()
        for name, options in {
            "voice": {"voice": clip(), "text_prompt": ROLE},
            "other voice": {"voice": clip(seed=1), "text_prompt": ROLE},
            "other role": {"voice": clip(), "text_prompt": "Be brief."},
            "no role": {"voice": clip(), "text_prompt": ""},
            "blank role": {"voice": clip(), "text_prompt": "  \n"},
            "default role": {"voice": clip()},
            "no voice": {"text_prompt": ROLE},
        }.items()
    }
    assert said.pop("blank role") == said["no role"]
    assert len(set(said.values())) == len(said)
    assert said["default role"] == talk(loaded, question, voice=clip(), text_prompt=personaplex.DEFAULT_ROLE).tobytes()


def test_compiled_and_batched_alike(loaded, question):
    alone = talk(loaded, question, voice=clip(), text_prompt=ROLE)
    fast = talk(loaded, question, voice=clip(), text_prompt=ROLE, compile=True)
    np.testing.assert_array_equal(alone, fast)
    pair = Session(loaded, batch=2, voice=clip(), text_prompt=ROLE, **GREEDY)
    pcm, _ = soundfile.read(question, dtype="float32")
    frames = [pair.step(np.stack([pcm[i * 1920 : (i + 1) * 1920]] * 2)) for i in range(5)]
    for row in (0, 1):
        np.testing.assert_array_equal(np.array([f[row].codes for f in frames]), alone[:5])


def test_prompt_that_does_not_fit(loaded):
    with pytest.raises(InputError, match=r"the prompt takes \d+ frames, \d+ s, and the model's window has 249"):
        Session(loaded, voice=clip(250), **GREEDY)
    with pytest.raises(InputError, match="shorten the voice or the text"):
        Session(loaded, text_prompt="word " * 200_000, **GREEDY)


def test_other_models_take_no_prompt(tiny_checkpoint):
    moshi = checkpoint.load(tiny_checkpoint)
    with pytest.raises(InputError, match="takes no voice and no text prompt; PersonaPlex does"):
        Session(moshi, voice="NATF2")
    with pytest.raises(InputError, match="takes no voice and no text prompt"):
        Session(moshi, text_prompt="Be brief.")
    config = CheckpointConfig.from_dict({**TINY_LM, "model_type": "personaplex"})
    with pytest.raises(ConfigError, match="8 codebooks each way with 2048 codes, found 8 with 256"):
        personaplex.make_prompt(config.lm, None, [])


def test_prompt_without_tokenizer(loaded):
    from dataclasses import replace

    with pytest.raises(InputError, match="needs the checkpoint's tokenizer"):
        Session(replace(loaded, tokenizer=None), **GREEDY)
    assert Session(replace(loaded, tokenizer=None), text_prompt="", **GREEDY).frames == 0


# Voices ---------------------------------------------------------------------------------------------------------


def test_stored_voice_is_the_clip(loaded, question, tmp_path):
    """Embeddings and cache, by way of files of every kind, give what the clip's codes give."""
    voice = stored(loaded, clip())
    expected = talk(loaded, question, voice=clip(), text_prompt=ROLE)
    np.testing.assert_array_equal(talk(loaded, question, voice=voice, text_prompt=ROLE), expected)
    voice.save(tmp_path / "v.safetensors")
    clip().save(tmp_path / "c.safetensors")
    torch_files.write(tmp_path / "v.pt", voice.tensors())
    for name in ("v.safetensors", "c.safetensors", "v.pt"):
        np.testing.assert_array_equal(talk(loaded, question, voice=tmp_path / name, text_prompt=ROLE), expected)
    assert (tmp_path / "c.safetensors").stat().st_size < 1000
    assert voices.load_voice(tmp_path / "v.pt").frames == voices.load_voice(tmp_path / "c.safetensors").frames == 20


@pytest.fixture
def with_voices(folder, loaded, tmp_path) -> Path:
    """The checkpoint with an archive of two voices, as published."""
    copy = shutil.copytree(folder, tmp_path / "checkpoint")
    with tarfile.open(copy / "voices.tgz", "w:gz") as tar:
        for name, seed in (("NATF2", 5), ("VARM1", 6)):
            path = torch_files.write(tmp_path / f"{name}.pt", stored(loaded, clip(12, seed), mx.bfloat16).tensors())
            tar.add(path, f"voices/{name}.pt")
        info = tarfile.TarInfo("../../evil.pt")
        tar.addfile(info, io.BytesIO())
        tar.addfile(tarfile.TarInfo("voices/._NATF2.pt"), io.BytesIO())
    return copy


def test_voices_of_the_checkpoint(with_voices, loaded, tmp_path):
    place = places.open_place(with_voices)
    voice = voices.find_voice("NATF2", place)
    assert (voice.name, voice.frames, voice.embeddings.dtype) == ("NATF2", 12, mx.bfloat16)
    assert voices.voice_names(place)[:2] == ["NATF2", "VARM1"]
    # A file in the voices folder comes first.
    (with_voices / "voices").mkdir()
    clip(7).save(with_voices / "voices" / "NATF2.safetensors")
    assert voices.find_voice("NATF2", place).frames == 7
    clip().save(with_voices / "voices" / "MINE.safetensors")
    assert voices.voice_names(place) == ["MINE", "NATF2", "VARM1", "evil"]
    with pytest.raises(InputError, match="there is no voice 'NATF9'; known voices: NATF2, VARM1"):
        voices.find_voice("NATF9", place)
    assert not (tmp_path.parent / "evil.pt").exists()


def test_own_voice(loaded, question, tmp_path):
    """At -24 LUFS, whatever the recording's loudness, rate and channels."""
    voice = voices.voice_from_audio(question, loaded.mimi)
    assert voice.codes.shape == (8, 79)
    pcm, rate = soundfile.read(question, dtype="float32")
    soundfile.write(tmp_path / "loud.wav", np.stack([0.5 * pcm, 0.5 * pcm], axis=1), rate, subtype="FLOAT")
    assert (voices.voice_from_audio(tmp_path / "loud.wav", loaded.mimi).codes != voice.codes).mean() < 0.01
    quiet = with_loudness(pcm, rate, -24)
    codes = loaded.mimi.encode(mx.array(quiet)[None, None], 8)
    np.testing.assert_array_equal(voice.codes, np.array(codes[0]))


WRONG = {
    "other width": (lambda v: Voice("x", embeddings=mx.zeros((9, 64)), cache=v.cache), "belongs to another model"),
    "a code beyond its table": (
        lambda v: Voice("x", embeddings=v.embeddings, cache=v.cache + 100000),
        "tokens that the model does not have",
    ),
    "a token below all": (
        lambda v: Voice("x", embeddings=v.embeddings, cache=v.cache * 0 - 5),
        "tokens that the model does not have",
    ),
    "other channels": (lambda v: Voice("x", embeddings=v.embeddings, cache=v.cache[:9]), "belongs to another model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_voice_of_another_model(loaded, case):
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        Session(loaded, voice=make(stored(loaded, clip())), **GREEDY)


def test_files_that_are_no_voices(loaded, tmp_path, with_voices):
    good = stored(loaded, clip()).tensors()

    def refuse(tensors: dict, message: str) -> None:
        mx.save_safetensors(str(tmp_path / "v.safetensors"), tensors)
        with pytest.raises(CheckpointError, match=message):
            voices.load_voice(tmp_path / "v.safetensors")

    refuse({"speaker_wavs": mx.zeros((1, 512, 125))}, "not a voice of PersonaPlex: it holds speaker_wavs")
    refuse({**good, "embeddings": mx.zeros((4, 16))}, r"expected embeddings of shape \[frames, 1, 1, width\]")
    refuse({**good, "embeddings": mx.full((4, 1, 1, 16), mx.nan)}, "NaN or infinite")
    refuse({"codes": mx.zeros((4, 10), mx.int32)}, "should be codes 0 .. 2047 of shape")
    refuse({"codes": mx.full((8, 10), 2048, mx.int32)}, "should be codes 0 .. 2047")
    refuse({"codes": mx.zeros((8, 10))}, "should be codes 0 .. 2047")
    torch_files.write(tmp_path / "v.pt", {"weight": mx.zeros((2, 2))})
    with pytest.raises(CheckpointError, match="not a voice of PersonaPlex: it holds weight"):
        voices.load_voice(tmp_path / "v.pt")
    archive = (with_voices / "voices.tgz").read_bytes()
    # The last one goes on, in the middle of its only file, with a block of a kind that there is not.
    info = tarfile.TarInfo("voices/NATF2.pt")
    info.size = 1 << 20
    packer = zlib.compressobj(wbits=31)
    damaged = packer.compress(info.tobuf() + bytes(1 << 19)) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 64
    for raw in (b"not an archive", archive[: len(archive) // 2], damaged):
        (with_voices / "voices.tgz").write_bytes(raw)
        with pytest.raises(CheckpointError, match="Download it again"):
            voices.find_voice("NATF2", places.open_place(with_voices))
    soundfile.write(tmp_path / "short.wav", np.ones(2400) / 2, 24000)
    with pytest.raises(AudioError, match="too short to measure"):
        voices.voice_from_audio(tmp_path / "short.wav", loaded.mimi)


# Loudness -------------------------------------------------------------------------------------------------------


def tone(seconds: float, rate: int, level: float = 1.0, frequency: float = 997) -> np.ndarray:
    return level * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)


@pytest.mark.parametrize("rate", [8000, 24000, 44100, 48000])
def test_loudness_of_the_standard_tone(rate):
    """A full-scale 997 Hz sine in one channel is -3.01 LUFS (BS.1770-4, annex 1)."""
    assert loudness(tone(5, rate), rate) == pytest.approx(-3.01, abs=0.01)
    assert loudness(tone(5, rate, 0.1), rate) == pytest.approx(-23.01, abs=0.01)


def test_loudness_is_gated_and_weighted():
    quiet, loud = tone(5, 48000, 0.001), tone(5, 48000, 0.1)
    # The relative gate leaves out what is 10 LU below the rest.
    assert loudness(np.concatenate([quiet, loud]), 48000) == pytest.approx(-23.01, abs=0.2)
    assert loudness(tone(5, 48000, frequency=40), 48000) < -8
    assert loudness(tone(5, 48000, frequency=5000), 48000) > 0
    assert loudness(with_loudness(loud, 48000, -24.0), 48000) == pytest.approx(-24.0, abs=1e-3)
    with pytest.raises(AudioError, match="silent, or nearly so"):
        loudness(1e-6 * loud, 48000)


def test_loudness_agrees_with_another_meter(question):
    """pyloudnorm 0.2.0 says -22.74 of the question; it approximates the standard's filters."""
    pcm, rate = soundfile.read(question)
    assert loudness(pcm, rate) == pytest.approx(-22.74, abs=0.1)


# The commands ---------------------------------------------------------------------------------------------------


def test_run_inference(with_voices, question, tmp_path, capsys):
    def reply(name: str, *more: str) -> bytes:
        args = [
            str(question),
            str(tmp_path / name),
            "--model",
            str(with_voices),
            "--greedy",
            "--no-compile",
            "--tail",
            "0",
            *more,
        ]
        assert run_inference.main(args) == 0
        return (tmp_path / name).read_bytes()

    first = reply("a.wav", "--voice", "NATF2", "--text-prompt", ROLE)
    assert first == reply("b.wav", "--voice", "NATF2", "--text-prompt", ROLE)
    assert first != reply("c.wav", "--voice", "VARM1", "--text-prompt", ROLE)
    assert first != reply("d.wav", "--voice", "NATF2", "--text-prompt", "")
    assert soundfile.info(tmp_path / "a.wav").frames == soundfile.info(question).frames
    assert "(personaplex)" in capsys.readouterr().err
    with pytest.raises(MoshiError, match="there is no voice 'Bob'; known voices: NATF2, VARM1"):
        reply("e.wav", "--voice", "Bob")
    with pytest.raises(MoshiError, match=r"the voice file no\.wav does not exist"):
        reply("e.wav", "--voice", "no.wav")
    assert not (tmp_path / "e.wav").exists()
    assert reply("f.wav", "--voice", str(question)) != first


def test_the_live_command(with_voices, question, tmp_path):
    """`local` prepares the conversation as `run_inference` does: the same reply."""
    common = ["--model", str(with_voices), "--greedy", "--no-compile", "--voice", "NATF2", "--text-prompt", ROLE]
    assert run_inference.main([str(question), str(tmp_path / "file.wav"), *common]) == 0
    assert local.main(["--input", str(question), "--output", str(tmp_path / "live.wav"), "--fast", *common]) == 0
    file, live = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("file", "live"))
    np.testing.assert_array_equal(live[: len(file)], file)
    assert np.abs(file).max() > 0
    with pytest.raises(MoshiError, match="there is no voice 'Bob'"):
        local.main(["--input", str(question), "--output", str(tmp_path / "x.wav"), "--fast", *common, "--voice", "Bob"])
    assert not (tmp_path / "x.wav").exists()


def test_voices_command(with_voices, question, tmp_path):
    def call(*args) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "moshi_mlx.voices", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    made = call(question, tmp_path / "me.safetensors", "--model", with_voices)
    assert made.returncode == 0, made.stderr
    assert "79 frames, 6.3 s" in made.stderr
    assert voices.load_voice(tmp_path / "me.safetensors").codes.shape == (8, 79)
    assert call("NATF2", tmp_path / "n.safetensors", "--model", with_voices).returncode == 0
    assert call("--list", "--model", with_voices).stdout.split()[:2] == ["NATF2", "VARM1"]
    for args, message in (
        ((question, tmp_path / "x.wav", "--model", with_voices), "should end in .safetensors"),
        ((question, tmp_path / "x.safetensors"), "name the checkpoint"),
        ((question,), "expected SOURCE and OUT"),
        (("Bob", tmp_path / "x.safetensors", "--model", with_voices), "known voices: NATF2"),
    ):
        result = call(*args)
        assert result.returncode == 1
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "x.safetensors").exists()
