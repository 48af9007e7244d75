"""Checkpoints in the layout of transformers, loaded as they are: the same numbers, words and replies as the folder they were made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from golden_convert import assert_same, convert
from mlx.utils import tree_flatten
from speech_toys import _tidy, checkpoint  # noqa: F401

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx import run_inference, stt
from moshi_mlx.checkpoint import Loader, hub
from moshi_mlx.checkpoint.files import Overrides, locate
from moshi_mlx.checkpoint.places import Folder
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, MoshiError
from moshi_mlx.machine import memory
from moshi_mlx.session import Session, voices
from moshi_mlx.session.codec_rust import RustSession

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="session")
def talker(tiny_checkpoint, tmp_path_factory) -> Path:
    """The small dialogue model as `MoshiForConditionalGeneration`."""
    return convert(tiny_checkpoint, tmp_path_factory.mktemp("talker") / "hf", "--to", "transformers")


@pytest.fixture(scope="session")
def listeners(tmp_path_factory) -> tuple[Path, Path]:
    """A small speech-to-text model without pause heads, which transformers has no place for, and the same in its layout."""
    folder = tmp_path_factory.mktemp("listener")
    ours = Path(shutil.copytree(checkpoint("tiny-stt"), folder / "ours"))
    tensors = dict(mx.load(str(ours / WEIGHTS)))
    mx.save_safetensors(str(ours / WEIGHTS), {n: x for n, x in tensors.items() if not n.startswith("extra_heads.")})
    edit_config(ours, extra_heads_num_heads=None)
    return ours, convert(ours, folder / "hf", "--to", "transformers")


@pytest.fixture
def hf(talker, tmp_path) -> Path:
    """A copy of the dialogue model that a test may damage."""
    return Path(shutil.copytree(talker, tmp_path / "hf-copy"))


@pytest.fixture
def hf_stt(listeners, tmp_path) -> Path:
    return Path(shutil.copytree(listeners[1], tmp_path / "stt-copy"))


def edit_config(folder: Path, name: str = "config.json", **changes) -> None:
    data = {**json.loads((folder / name).read_text()), **changes}
    (folder / name).write_text(json.dumps({k: v for k, v in data.items() if v is not None}))


def edit_weights(folder: Path, edit) -> None:
    tensors = dict(mx.load(str(folder / WEIGHTS)))
    edit(tensors)
    mx.eval(list(tensors.values()))
    mx.save_safetensors(str(folder / WEIGHTS), tensors)


def shard(folder: Path) -> dict[str, str]:
    """Two shards with an index in place of one file; a layer and the codec lie in both."""
    tensors = dict(mx.load(str(folder / WEIGHTS)))
    mx.eval(list(tensors.values()))
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        mx.save_safetensors(str(folder / file), {n: tensors[n] for n, f in where.items() if f == file})
    (folder / WEIGHTS).unlink()
    write_index(folder, where)
    return where


def write_index(folder: Path, where: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def load(folder: Path, **options) -> checkpoints.Checkpoint:
    return Loader(locate(folder), **options).load()


def assert_same_models(a: checkpoints.Checkpoint, b: checkpoints.Checkpoint) -> None:
    for modules in ((a.lm, b.lm), (a.mimi, b.mimi)):
        assert_same(*(dict(tree_flatten(module.parameters())) for module in modules))


# The same results -------------------------------------------------------------------------------------------------


def test_the_same_numbers(tiny_checkpoint, talker, listeners):
    for ours, other in ((tiny_checkpoint, talker), listeners):
        a, b = load(ours), load(other)
        assert_same_models(a, b)
        assert (a.config.model_type, a.precision) == (b.config.model_type, b.precision)
        for text in ("babi bofu", "x 12", ""):
            assert a.tokenizer.encode(text) == b.tokenizer.encode(text)


def test_the_same_words(listeners, question, capsys):
    said = []
    for folder in listeners:
        assert stt.main([str(question), "-f", "json", "--model", str(folder)]) == 0
        out, err = capsys.readouterr()
        said.append(json.loads(out))
        assert f"{folder} (stt), licence: " in err and "\nprecision: " in err and "\nmemory: needs " in err
    assert said[0] == said[1]
    assert len(said[0]["words"]) > 3


def test_the_same_reply(tiny_checkpoint, talker, question, tmp_path, capsys):
    replies = []
    for i, folder in enumerate((tiny_checkpoint, talker)):
        path = tmp_path / f"{i}.wav"
        assert run_inference.main([str(question), str(path), "--model", str(folder), "--greedy"]) == 0
        replies.append((path.read_bytes(), capsys.readouterr().out))
    assert replies[0] == replies[1]
    assert len(replies[0][0]) > 10_000


def test_the_same_talk(tiny_checkpoint, talker):
    """What a program that embeds the model hears, drawn with the same seed."""
    talks = []
    for folder in (tiny_checkpoint, talker):
        session = Session(checkpoints.load(folder), seed=5, compile=False)
        sound = np.random.default_rng(0).standard_normal((12, 1920)).astype(np.float32)
        frames = [session.step(0.2 * frame) for frame in sound]
        talks.append([(f.text_token, f.codes.tolist(), f.pcm.tobytes()) for f in frames])
    assert talks[0] == talks[1]


def test_how_sound_is_prepared(listeners, hf_stt):
    ours, other = (locate(folder).config for folder in listeners)
    assert other.stt == ours.stt
    assert (other.stt.audio_delay_seconds, other.stt.audio_silence_prefix_seconds) == (0.5, 1.0)
    assert (other.generation.temp_text, "lm_gen_config" in other.raw) == (0.0, True)
    (hf_stt / "preprocessor_config.json").unlink()
    assert locate(hf_stt).config.stt is None


def test_a_row_more_in_the_head_is_left_out_where_it_says_nothing(hf_stt):
    rows = load(hf_stt, with_codec=False).lm.text_linear.weight.shape[0]

    def speak(tensors):
        tensors["lm_head.weight"][-1] = 0.5

    edit_weights(hf_stt, speak)
    head = load(hf_stt, with_codec=False).lm.text_linear.weight
    assert head.shape[0] == rows + 1
    assert mx.all(head[-1] == 0.5).item()


def test_shards(talker, hf):
    shard(hf)
    assert_same_models(load(talker), load(hf))


def test_a_repository(talker, hf, monkeypatch):
    names = set(shard(hf).values())
    asked = []

    def download(repo, name, *, optional=False):
        asked.append(name)
        return hf / name if (hf / name).exists() else None

    monkeypatch.setattr(hub, "download", download)
    loaded = checkpoints.load(hf_repo="someone/tiny-hf")
    assert names <= set(asked)
    # The codec is in the weights: its published file is not looked for.
    assert not any(name.startswith("tokenizer-") for name in asked)
    assert_same_models(load(talker), loaded)


def test_single_files_replace_those_of_a_folder(tiny_checkpoint, talker, hf):
    codec = tiny_checkpoint / "tokenizer-e351c8d8-checkpoint125.safetensors"
    edit_weights(hf, lambda t: [t.pop(name) for name in [*t] if name.startswith("audio_encoder.")])
    with pytest.raises(CheckpointError, match=r"lacks the codec 'audio_encoder\.\*'; name it with --mimi-weights"):
        load(hf)
    assert_same_models(load(talker), Loader(locate(hf, overrides=Overrides(mimi=str(codec)))).load())
    # A tokenizer.json also goes with Kyutai's own layouts.
    files = locate(tiny_checkpoint, overrides=Overrides(tokenizer=str(talker / "tokenizer.json")))
    assert checkpoints.load_tokenizer(files).encode("babi bofu") == load(talker).tokenizer.encode("babi bofu")


def test_a_sentencepiece_model_comes_first(talker, tiny_checkpoint, hf):
    shutil.copy(tiny_checkpoint / "tokenizer_spm_32k_3.model", hf / "tokenizer.model")
    assert locate(hf).tokenizer == hf / "tokenizer.model"
    assert locate(talker).tokenizer == talker / "tokenizer.json"


def test_memory(tiny_checkpoint, talker, monkeypatch):
    ours, other = (Loader(locate(folder), dtype=mx.bfloat16).estimate() for folder in (tiny_checkpoint, talker))
    assert other.weights == pytest.approx(ours.weights, rel=0.02)
    assert other.codec == pytest.approx(ours.codec, rel=0.02)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    with pytest.raises(CheckpointError, match="needs .* of memory, .* available"):
        load(talker)


# Refusals ---------------------------------------------------------------------------------------------------------


def not_a_number(name: str):
    def edit(tensors):
        flat = tensors[name].flatten()
        flat[0] = float("nan")
        tensors[name] = flat.reshape(tensors[name].shape)

    return lambda folder: edit_weights(folder, edit)


def other_weights(folder: Path) -> None:
    """Kyutai's weights beside a configuration of transformers."""
    made = convert(folder, folder.parent / "kyutai")
    shutil.copy(made / WEIGHTS, folder / WEIGHTS)


def elsewhere(name: str):
    def damage(folder: Path) -> None:
        where = shard(folder)
        for file in set(where.values()):
            shutil.copy(folder / file, folder.parent / file)
        write_index(folder, {tensor: name.format(file) for tensor, file in where.items()})

    return damage


def lose_a_shard(folder: Path) -> None:
    (folder / min(shard(folder).values())).unlink()


HEAD, NORM = "decoder.lm_head.weight", "decoder.model.norm.weight"
BROKEN = {
    "another model": (lambda d: edit_config(d, model_type="bert"), "model_type 'bert', expected moshi or kyutai_speech_to_text"),
    "no model": (lambda d: edit_config(d, model_type=None), "model_type None, expected moshi or"),
    "a list for a name": (lambda d: edit_config(d, model_type=["moshi"]), r"model_type \['moshi'\], expected"),
    "a text model": (lambda d: edit_config(d, model_type="llama"), "'llama'.*text models run with python -m moshi_mlx.run_helium"),
    "another layout": (lambda d: edit_config(d, model_type="kyutai_speech_to_text", num_codebooks=None, vocab_size=None), "has the layout of transformers' moshi, but config.json says 'kyutai_speech_to_text'"),
    "Kyutai's weights": (other_weights, r"one of transformers \(moshi\), but .* has Kyutai's layout"),
    "no configuration": (lambda d: (d / "config.json").unlink(), "layout of transformers' moshi, but config.json is missing"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), f"has no weights; expected {WEIGHTS} or {INDEX}"),
    "scaled positions": (lambda d: edit_config(d, rope_scaling={"rope_type": "yarn"}), "positions of the type 'yarn'"),
    "a tensor missing": (lambda d: edit_weights(d, lambda t: t.pop(NORM)), f"lacks 1 tensor .*{NORM}"),
    "a tensor too many": (lambda d: edit_weights(d, lambda t: t.update(other=mx.zeros(3))), "no place for: other"),
    "a tensor missing in the codec": (lambda d: edit_weights(d, lambda t: t.pop("audio_encoder.decoder.layers.0.conv.weight")), "lacks 1 tensor .*decoder.layers.0.conv.weight"),
    "another shape": (lambda d: edit_weights(d, lambda t: t.update({HEAD: mx.zeros((7, 128))})), r"should have the shape \[200, 128\].*\[7, 128\]"),
    "NaN": (not_a_number(HEAD), "NaN.*text_linear.weight"),
    "NaN in the codec": (not_a_number("audio_encoder.decoder.layers.0.conv.weight"), "NaN.*decoder.model.0"),
    "not a tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), "not a tokenizer of a sentencepiece model; give one with --tokenizer"),
    "a tokenizer cut short": (lambda d: (d / "tokenizer.json").write_text("{"), "tokenizer.json is not valid JSON"),
    "a shard outside": (elsewhere("../{}"), "index.json names the file '../model-00001-of-00002.safetensors' outside its folder"),
    "a shard of another repository": (elsewhere("hf://a/b/{}"), "names the file 'hf://a/b/model-00001.*' outside its folder"),
    "a shard missing": (lose_a_shard, "lacks the file 'model-00001-of-00002.safetensors'"),
    "an index of nothing": (lambda d: (shard(d), write_index(d, {})), "has no 'weight_map'"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_folders(hf, case):
    damage, message = BROKEN[case]
    damage(hf)
    with pytest.raises(MoshiError, match=message):
        load(hf)


def test_a_tokenizer_that_is_missing(hf, hf_stt, question, tmp_path):
    for folder, run in (
        (hf, lambda: run_inference.main([str(question), str(tmp_path / "o.wav"), "--model", str(hf)])),
        (hf_stt, lambda: stt.main([str(question), "--model", str(hf_stt)])),
    ):
        (folder / "tokenizer.json").unlink()
        with pytest.raises(MoshiError, match=r"lacks .*tokenizer.*name it with --tokenizer"):
            run()
    assert not (tmp_path / "o.wav").exists()


def test_a_flag_packs_it_while_it_loads(talker):
    loaded = Loader(locate(talker, quantized=4), quantized=4).load()
    assert loaded.precision.startswith("affine 4 bit, group 32")
    assert any("to keep it: python -m moshi_mlx.quantize" in note for note in loaded.notes)


def test_models_that_only_listen_and_models_that_talk(talker, listeners, question):
    with pytest.raises(ConfigError, match="is a dialogue model; .* stt runs speech-to-text models"):
        stt.main([str(question), "--model", str(talker)])


def test_the_codec_has_no_file_of_its_own(talker, tmp_path):
    """What asks for the file of the codec says so."""
    with pytest.raises(CheckpointError, match="lacks the file 'tokenizer-e351c8d8"):
        voices.load_codec(Folder(talker))
    with pytest.raises(InputError, match="--codec rust a file of its own for it: name it with --mimi-weights"):
        RustSession(load(talker))
    codec = convert(talker, tmp_path / "made") / "tokenizer-e351c8d8-checkpoint125.safetensors"
    with pytest.raises(InputError, match="only knows the published codec"):
        RustSession(Loader(locate(talker, overrides=Overrides(mimi=str(codec)))).load())


def test_the_codec_of_a_configuration(talker, listeners):
    for folder in (talker, listeners[1]):
        config = CheckpointConfig.from_dict(json.loads((folder / "config.json").read_text()))
        assert (config.codec.bins, config.codec.seanet.dimension, config.moshi_name) == (256, 64, WEIGHTS)
    assert config.architecture == "kyutai_speech_to_text"
