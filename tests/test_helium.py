"""Text models in both layouts: loading, one pass over the prompt, the command, and everything refused in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from random_checkpoint import write_tokenizer
from toy import randomise

from moshi_mlx import run_helium
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.config.presets import HELIUM_1_PREVIEW_2B
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, MoshiError
from moshi_mlx.helium import text_model as helium
from moshi_mlx.machine import memory
from moshi_mlx.models.lm import Lm

GOLDENS = Path(__file__).parent / "goldens" / "family"
TEXT = {
    **HELIUM_1_PREVIEW_2B,
    "dim": 64,
    "num_heads": 4,
    "num_layers": 2,
    "context": 40,
    "text_card": 60,
    "text_in_vocab_size": 60,
}


def character_tokenizer(folder: Path, size: int) -> None:
    """A `tokenizer.json` of single characters, after the four ids every Kyutai tokenizer begins with."""
    from tokenizers import Tokenizer, decoders, models

    pieces = ["<unk>", "<s>", "</s>", "<pad>", *string.printable][:size]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>"))
    tokenizer.add_special_tokens(pieces[:4])
    tokenizer.decoder = decoders.Fuse()
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    """helium-1-2b in small: a folder of transformers."""
    folder = tmp_path_factory.mktemp("llama")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDENS / "helium_llama" / name, folder)
    character_tokenizer(folder, 96)
    return folder


def write_helium(folder: Path) -> Path:
    """helium-1-preview-2b-mlx in small, with the config.json a conversion writes."""
    lm = randomise(Lm(CheckpointConfig.from_dict(TEXT).lm), 1)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(lm.parameters())))
    write_tokenizer(folder / "text.model", 60)
    (folder / "config.json").write_text(
        json.dumps({**TEXT, "moshi_name": "model.safetensors", "tokenizer_name": "text.model"})
    )
    return folder


@pytest.fixture(scope="module")
def kyutai(tmp_path_factory) -> Path:
    return write_helium(tmp_path_factory.mktemp("kyutai"))


def test_positions_as_transformers_5_writes_them(llama, tmp_path):
    """The base of the rotation moved into `rope_parameters`, where mlx-lm does not look for it."""
    folder = shutil.copytree(llama, tmp_path / "new")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(config))
    new, old = (helium.load(f) for f in (folder, llama))
    prompt = mx.array([[1, 17, 5, 80, 33, 9, 61, 4]])
    np.testing.assert_array_equal(new.model(prompt, cache=new.cache()), old.model(prompt, cache=old.cache()))
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5.0}
    assert helium.positions({"rope_parameters": scaled}) == {"rope_theta": 5.0, "rope_scaling": scaled}
    assert helium.positions({"rope_theta": 5.0}) == {}


@pytest.fixture(params=["llama", "kyutai"])
def folder(request) -> Path:
    return request.getfixturevalue(request.param)


def test_prompt_in_one_pass_is_step_by_step(kyutai):
    """Also past the first capacity of the rings and past the window."""
    text = helium.load(kyutai)
    tokens = [1, *np.random.default_rng(0).integers(4, 60, 90).tolist()]
    whole = text.model(mx.array([tokens]), cache=text.cache())
    cache, steps = text.cache(), []
    for token in tokens:
        steps.append(text.model(mx.array([[token]]), cache=cache)[0, -1])
    np.testing.assert_allclose(np.array(whole[0]), np.array(mx.stack(steps)), atol=2e-5)


def test_goes_on_and_stops(folder):
    text = helium.load(folder)
    prompt = text.tokens("ba")
    tokens = list(helium.generate_tokens(text, prompt, 12))
    assert tokens == list(helium.generate_tokens(text, prompt, 12))
    assert len(tokens) == 12
    # The end of the text is whatever the model says next: stop there.
    text.eos = frozenset({tokens[5]})
    assert list(helium.generate_tokens(text, prompt, 12)) == tokens[: tokens.index(tokens[5])]
    text.eos = frozenset()
    assert len(list(helium.generate_tokens(text, prompt, 10_000))) == text.window - len(prompt)


def test_text_comes_in_whole_characters(folder):
    text = helium.load(folder)
    pieces = list(helium.generate(text, "ba", 12))
    out = text.detokenizer()
    expected = "".join(out.add(t) for t in helium.generate_tokens(text, text.tokens("ba"), 12)) + out.finish()
    assert "".join(pieces) == expected
    assert expected


def test_begins_with_bos(llama, kyutai):
    assert helium.load(llama).tokens("ab")[0] == 1
    assert len(helium.load(llama).tokens("ab")) == 3
    assert helium.load(kyutai).tokens("ba")[0] == 1


def run(folder, *args):
    command = [
        sys.executable,
        "-m",
        "moshi_mlx.run_helium",
        *map(str, args),
        "--model",
        str(folder),
        "--max-tokens",
        "8",
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, input="ba")


def test_command(folder, capsys):
    result = run(folder, "ba", "--seed", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("ba")
    assert len(result.stdout) > 4
    for word in ("window of", "prompt: ", "tokens a second", "peak memory"):
        assert word in result.stderr
    assert run(folder, "-", "--seed", 1).stdout == result.stdout
    run_helium.main(["--prompt", "ba", "--seed", "1", "--only-new", "--model", str(folder), "--max-tokens", "8"])
    assert capsys.readouterr().out == result.stdout.removeprefix("ba")


def call(folder, *args, capsys=None) -> str:
    assert run_helium.main([*map(str, args), "--model", str(folder)]) == 0
    return capsys.readouterr().out


def test_greedy_is_temperature_zero(folder, capsys):
    greedy = call(folder, "ba", "--greedy", "--max-tokens", 8, capsys=capsys)
    assert greedy == call(folder, "ba", "--temp", 0, "--seed", 5, "--max-tokens", 8, capsys=capsys)
    assert greedy == call(folder, "ba", "--top-k", 1, "--max-tokens", 8, capsys=capsys)


def test_window_is_told(kyutai, capsys):
    run_helium.main(["ba", "--greedy", "--max-tokens", "500", "--model", str(kyutai)])
    assert "stopped at the model's window of 40 tokens" in capsys.readouterr().err


def test_packed_after_loading(folder, capsys):
    dense = helium.load(folder)
    before = memory.module_bytes(dense.model)
    helium.quantize(dense, 8, 32)
    assert memory.module_bytes(dense.model) < 0.6 * before
    assert call(folder, "ba", "--quantize-bits", 8, "--quantize-group-size", 32, capsys=capsys).startswith("ba")
    with pytest.raises(InputError, match="quantised already"):
        helium.quantize(dense, 4, 32)


def test_packed_weights_are_saved(kyutai, llama, tmp_path, capsys):
    """They load by the published names of the layers and say what was said when they were packed."""
    packed = tmp_path / "packed.safetensors"
    options = ["--quantize-bits", 8, "--quantize-group-size", 32, "--greedy", "--max-tokens", 12]
    said = call(kyutai, "ba", *options, "--save-quantized", packed, capsys=capsys)
    assert [p.name for p in tmp_path.iterdir()] == ["packed.safetensors"]
    assert "transformer.layers.0.self_attn.in_proj.scales" in mx.load(str(packed))
    assert call(kyutai, "ba", "--greedy", "--max-tokens", 12, "--weights", packed, capsys=capsys) == said
    for args, message in (
        (["--save-quantized", packed], "give both"),
        (["--save-quantized", tmp_path / "x.bin", "--quantize-bits", 8], "should end in .safetensors"),
        (["--save-quantized", tmp_path / "no" / "x.safetensors", "--quantize-bits", 8], "make it first"),
    ):
        with pytest.raises(MoshiError, match=message):
            call(kyutai, "ba", *args, capsys=capsys)
    with pytest.raises(InputError, match="moshi_mlx.quantize makes a folder of it"):
        call(llama, "ba", *options, "--save-quantized", tmp_path / "x.safetensors", capsys=capsys)
    assert not (tmp_path / "x.safetensors").exists()


def test_single_files_and_the_published_folder(kyutai, tmp_path):
    """The published MLX repository has no config.json; its files may also be named by hand."""
    with pytest.raises(CheckpointError, match="lacks the file 'helium-1-preview-2b-bf16.safetensors'"):
        helium.load(tmp_path)
    shutil.copy(kyutai / "model.safetensors", tmp_path / helium.PREVIEW_WEIGHTS)
    shutil.copy(kyutai / "text.model", tmp_path / helium.PREVIEW_TOKENIZER)
    # It is then a model of 2 billion parameters, which this file is not.
    with pytest.raises(CheckpointError, match="weights belong to another configuration"):
        helium.load(tmp_path)
    shutil.copy(kyutai / "config.json", tmp_path / "config.json")
    text = helium.load(
        weights=str(tmp_path / helium.PREVIEW_WEIGHTS), tokenizer=str(tmp_path / helium.PREVIEW_TOKENIZER)
    )
    assert text.window == 40


BAD = {
    "empty": (["   "], "the prompt is empty"),
    "too long": (["ba " * 200_000], "the window of .* is|tokens, the window of"),
    "twice": (["ba", "--prompt", "ba"], "give the prompt once"),
    "temperature": (["ba", "--temp", "-1"], "--temp should be"),
    "top-p": (["ba", "--top-p", "0"], "--top-p should be"),
    "top-k": (["ba", "--top-k", "-3"], "--top-k should be"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(folder, case):
    args, message = BAD[case]
    with pytest.raises(MoshiError, match=message):
        run_helium.main([*args, "--model", str(folder)])


def test_a_prompt_from_a_pipe(folder, capsys, monkeypatch, tmp_path):
    (tmp_path / "prompt").write_text("ba")
    with open(tmp_path / "prompt") as prompt:
        monkeypatch.setattr("sys.stdin", prompt)
        piped = call(folder, "-", "--greedy", "--max-tokens", 2, capsys=capsys)
    assert piped == call(folder, "ba", "--greedy", "--max-tokens", 2, capsys=capsys)


def test_a_pipe_without_a_prompt(folder, monkeypatch, tmp_path):
    def refused(stdin, message: str) -> None:
        monkeypatch.setattr("sys.stdin", stdin)
        with pytest.raises(InputError, match=message):
            run_helium.main(["-", "--model", str(folder)])

    refused(None, "standard input is closed")
    (tmp_path / "bytes").write_bytes(b"\xff")
    with open(tmp_path / "bytes") as file:
        refused(file, "standard input is not UTF-8 text")
    place = os.open(tmp_path, os.O_RDONLY)
    refused(SimpleNamespace(fileno=lambda: place), "standard input cannot be read: Is a directory")
    os.close(place)


def test_control_characters_and_emoji(folder, capsys):
    call(folder, "a\x00\x1b[31m \U0001f642 \u0301", "--greedy", "--max-tokens", 2, capsys=capsys)


def test_other_checkpoints_are_refused(llama, kyutai, tiny_checkpoint, tmp_path):
    with pytest.raises(ConfigError, match="is a speech model"):
        helium.load(tiny_checkpoint)
    other = shutil.copytree(llama, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    with pytest.raises(ConfigError, match="holds a 'qwen2' model"):
        helium.load(other)
    with pytest.raises(InputError, match="replace files in Kyutai's layout"):
        helium.load(llama, tokenizer=str(kyutai / "text.model"))
    with pytest.raises(CheckpointError, match="Did you mean helium"):
        helium.load("heliun")


def test_damaged_checkpoints(llama, tmp_path, monkeypatch):
    def damaged(name: str) -> Path:
        return shutil.copytree(llama, tmp_path / name)

    folder = damaged("no tokenizer")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the file 'tokenizer\.json'"):
        helium.load(folder)
    folder = damaged("cut")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError, match="Download it again"):
        helium.load(folder)
    for name, value in (("nan", float("nan")), ("infinite", float("-inf")), ("whole", None)):
        folder = damaged(name)
        tensors = dict(mx.load(str(llama / "model.safetensors")))
        last = sorted(tensors)[-1]
        tensors[last] = tensors[last].astype(mx.int32) if value is None else mx.full(tensors[last].shape, value)
        mx.save_safetensors(str(folder / "model.safetensors"), tensors)
        with pytest.raises(CheckpointError, match=f"holds what are no weights in {last}"):
            helium.load(folder)
    folder = damaged("other shape")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        helium.load(folder)
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    with pytest.raises(CheckpointError, match="of memory"):
        helium.load(llama)
