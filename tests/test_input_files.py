"""What may be in files, and what of it reaches a terminal: bounds of JSON, names, files that are none, texts with escapes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from moshi_mlx.convert.__main__ import main as convert
from random_checkpoint import write_tokenizer

from moshi_mlx.checkpoint import Loader, hub
from moshi_mlx.checkpoint.files import Overrides, locate
from moshi_mlx.checkpoint.places import Folder
from moshi_mlx.checkpoint.tokenizer_json import read_tokenizer
from moshi_mlx.checkpoint.torch_reader import read_tensors
from moshi_mlx.checkpoint.weights_file import WeightsFile, shard_names
from moshi_mlx.config import CheckpointConfig
from moshi_mlx.config.input_files import check_name, file_size, read_bytes
from moshi_mlx.config.json_text import LARGEST, parse_json, read_json
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, MoshiError, clean, quoted
from moshi_mlx.text import Detokenizer

ESCAPES = "\x1b[31m\x1b]0;owned\x07\u202e\u2028\ud800\x9b2J"


# One reader of JSON ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested more than 64 deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of 5000 digits"),
        (b'{"a": -' + b"9" * 40 + b"}", "a number of 41 digits"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": -Infinity}', "-Infinity is no number"),
        (b'{"a": 1e999}', "the number 1e999 is too large"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' is there twice"),
        (b"[" + b"1," * 3_000_000 + b"1]", "more than 2500000 parts"),
        (b'"' + b"\\n" * 3_000_000 + b'"', "more than 2500000 parts"),
        (b'{"a": "\xff"}', "it is not text"),
        (b'{"a": }', "Expecting value: line 1 column 7"),
        (b"", "Expecting value"),
    ],
)
def test_json_that_is_refused(text, problem):
    with pytest.raises(ValueError, match=problem):
        parse_json(text)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_texts_of_any_encoding(encoding):
    assert parse_json('{"é": [1, 2.5, "]]]["]}'.encode(encoding)) == {"é": [1, 2.5, "]]]["]}


def test_brackets_inside_texts_are_no_depth():
    assert parse_json(json.dumps({"a": "[" * 1000, 'b\\"[': '\\"[[['}).encode())


def test_files_larger_than_any_configuration(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b" " * (LARGEST + 1))
    with pytest.raises(ConfigError, match="at most 16777216 are expected"):
        read_json(path)
    with open(path, "wb") as sparse:
        sparse.truncate(1 << 40)
    with pytest.raises(ConfigError, match="at most 16777216 are expected"):
        read_json(path)


def test_values_of_megabytes_are_told_in_few_words(tiny_copy):
    config = json.loads((tiny_copy / "config.json").read_text())
    for key, value in (
        ("dim", "x" * 5_000_000),
        ("delays", ["y" * 1000] * 1000),
        ("z" * 3_000_000, 1),
        ("gating", [[1] * 1000] * 1000),
    ):
        with pytest.raises(ConfigError) as e:
            CheckpointConfig.from_dict({**config, key: value})
        assert len(str(e.value)) < 800


# Files that are none --------------------------------------------------------------------------------------------------


def irregular(folder: Path) -> dict[str, Path]:
    os.mkfifo(folder / "pipe")
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    return {"a pipe": folder / "pipe", "a device": folder / "zero", "a folder": folder / "folder"}


READERS = {
    "json": read_json,
    "weights": WeightsFile,
    "bytes": lambda path: read_bytes(path, 100),
    "torch": read_tensors,
    "tokenizer": read_tokenizer,
    "index": shard_names,
    "by hand": lambda path: locate(overrides=Overrides(moshi=str(path), config=str(path))),
    "in a folder": lambda path: Folder(path.parent).find(path.name, optional=True),
}


@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_are_read(tmp_path, reader):
    for kind, path in irregular(tmp_path).items():
        with pytest.raises(MoshiError, match=f"is {kind}; a file is expected"):
            READERS[reader](path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "mimi.json", "README.md"])
def test_a_pipe_in_a_checkpoint_is_not_waited_for(tiny_copy, tmp_path, name):
    (tiny_copy / name).unlink(missing_ok=True)
    os.mkfifo(tiny_copy / name)
    for run in (lambda: Loader(locate(tiny_copy)), lambda: convert([str(tiny_copy), str(tmp_path / "made")])):
        with pytest.raises(MoshiError, match=f"{name} is a pipe; a file is expected"):
            run()


def test_links_to_files_are_followed(tmp_path):
    (tmp_path / "file").write_text("{}")
    (tmp_path / "link").symlink_to("file")
    assert read_json(tmp_path / "link") == {}
    assert file_size(tmp_path / "link") == 2


# Names ----------------------------------------------------------------------------------------------------------------

BAD_NAMES = [
    "",
    "\0",
    "a\0b",
    "../x",
    "/etc/passwd",
    "a/../../b",
    "a//b",
    "a/",
    ".",
    "a\x1b[31m",
    "x" * 300,
    "a\nb",
    5,
    None,
    ["a"],
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_what_is_no_name(name):
    with pytest.raises(CheckpointError, match=r"is not the name of a file|points outside"):
        check_name(name, "config")


def test_names_that_are_fine():
    for name in ("model.safetensors", "voices/NATF2.pt", "a b.model", "é@1.safetensors", "..x"):
        check_name(name, "config")


@pytest.mark.parametrize(
    "name", ["hf://a/b/../x", "hf://a/b", "hf://", "hf://a//x", "hf://a/b/\0", "hf://../../x", "hf://a/b/" + "x" * 2000]
)
def test_names_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda *a, **k: pytest.fail("it was asked for"))
    with pytest.raises(CheckpointError):
        hub.split_hub_name(name)


@pytest.mark.parametrize("key", ["moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "lora_name"])
@pytest.mark.parametrize("name", ["hf://a/b/../x", "a\0b", "../../x", "\x1b[2J"])
def test_names_in_a_configuration(tiny_copy, tmp_path, key, name):
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, key: name}))
    with pytest.raises(MoshiError) as e:
        locate(tiny_copy)
    assert clean(str(e.value)) == str(e.value)
    with pytest.raises(MoshiError):
        convert([str(tiny_copy), str(tmp_path / "made")])


@pytest.mark.parametrize("name", ["", "\0", "a/b", "..", 7, {"a": 1}])
def test_names_in_an_index(tmp_path, name):
    (tmp_path / "i.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError):
        WeightsFile(tmp_path / "i.index.json")


# Texts from files on a terminal ---------------------------------------------------------------------------------------


def test_what_is_left_of_escapes():
    assert clean(f"a{ESCAPES}b") == "a[31m]0;owned2Jb"
    assert clean("two\nlines\tand é 日本 🙂") == "two lines and é 日本 🙂"
    assert clean("a\nb", keep="\n") == "a\nb"
    assert len(clean("x" * 10_000, 100)) < 120
    assert quoted({"k": "v" * 10_000}) == quoted({"k": "v" * 10_000})
    assert len(quoted([["v" * 10_000] * 100] * 100)) < 5000


def test_errors_clean_themselves():
    e = InputError(f"{ESCAPES} is no file; choose another. " + "x" * 1_000_000 + " Do this.")
    assert "\x1b" not in str(e)
    assert len(str(e).encode()) <= 2048
    assert str(e).endswith("Do this.")


@pytest.mark.parametrize("where", ["licence", "tensor", "config key", "config value", "conditioner", "piece"])
def test_no_escape_reaches_the_terminal(tiny_copy, tmp_path, where):
    """A command on a checkpoint that says something to the terminal: whatever comes out of it is text."""
    config = json.loads((tiny_copy / "config.json").read_text())
    if where == "licence":
        (tiny_copy / "README.md").write_text(f"---\nlicense: {ESCAPES[:14]}x\n---\n")
    elif where == "tensor":
        tensors = dict(mx.load(str(tiny_copy / "model.safetensors")))
        tensors["\x1b[31mname"] = mx.zeros(3)
        mx.save_safetensors(str(tiny_copy / "model.safetensors"), tensors)
    elif where == "piece":
        tokenizer_with_escapes(tiny_copy / config["tokenizer_name"])
    else:
        config.update(
            {
                "config key": {ESCAPES: 1},
                "config value": {"gating": ESCAPES},
                "conditioner": {"conditioners": {ESCAPES: {"type": "x"}}},
            }[where]
        )
        (tiny_copy / "config.json").write_text(json.dumps(config))
    for command in (
        ["moshi_mlx.run_inference", "--model", str(tiny_copy), "examples/question.wav", str(tmp_path / "o.wav")],
        ["moshi_mlx.convert", str(tiny_copy), str(tmp_path / "made"), "--no-verify"],
    ):
        run = subprocess.run([sys.executable, "-m", *command], capture_output=True, cwd=Path(__file__).parent.parent)
        said = (run.stdout + run.stderr).decode()
        assert not any(c in said for c in "\x1b\x07\x9b\u202e")
        assert "Traceback" not in said
        if where == "licence":
            assert "x" in said
    card = tmp_path / "made" / "README.md"
    assert not card.exists() or "\x1b" not in card.read_text()


def tokenizer_with_escapes(path: Path) -> None:
    """A sentencepiece model whose pieces are escape sequences."""
    from sentencepiece import sentencepiece_model_pb2 as pb

    proto = pb.ModelProto()
    proto.ParseFromString(path.read_bytes())
    for i, piece in enumerate(proto.pieces):
        if piece.type == 1:
            piece.piece = f"\x1b[{i}m\u202e\x07{piece.piece}"
    path.write_bytes(proto.SerializeToString())


def test_pieces_with_escapes(tmp_path):
    from moshi_mlx.checkpoint.tokenizer_json import processor_of

    write_tokenizer(tmp_path / "t.model", 100)
    tokenizer_with_escapes(tmp_path / "t.model")
    out = Detokenizer(processor_of((tmp_path / "t.model").read_bytes()))
    said = "".join(out.feed(t) for t in range(100)) + out.flush()
    assert not any(c in said for c in "\x1b\x07\u202e")
    assert said
