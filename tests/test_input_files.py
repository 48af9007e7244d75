"""What may be in files, and what of it reaches a terminal: bounds of JSON, names, files that are none, texts with escapes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moshi_mlx.convert.__main__ import main as convert
from random_checkpoint import write_tokenizer

from moshi_mlx.checkpoint import Loader, hub
from moshi_mlx.checkpoint.files import Overrides, locate
from moshi_mlx.checkpoint.places import Folder
from moshi_mlx.checkpoint.tokenizer_json import read_tokenizer
from moshi_mlx.checkpoint.torch_reader import read_tensors
from moshi_mlx.checkpoint.weights_file import WeightsFile, shard_names
from moshi_mlx.config import CheckpointConfig, MimiConfig
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


# Any JSON at all ------------------------------------------------------------------------------------------------------

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.sampled_from([0, 1, -1, 2, 1024, 1 << 20, 1 << 40, 10**30, 0.5, 1e300, -1e300, "rope", "sin", "none", "silu", "lut", ESCAPES]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


def mutated(base: dict, draw) -> dict:
    """`base` with some values, also deep ones, replaced, removed or added."""
    data = json.loads(json.dumps(base))
    for _ in range(draw(st.integers(1, 4))):
        at, key = data, draw(st.sampled_from(sorted(data)))
        while isinstance(at[key], dict) and at[key] and draw(st.booleans()):
            at = at[key]
            key = draw(st.sampled_from(sorted(at)))
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add", "scale"]))
        if kind == "remove":
            del at[key]
        elif kind == "add":
            at[draw(st.text(max_size=8))] = draw(VALUES)
        elif kind == "scale" and isinstance(at[key], int):
            at[key] = at[key] * draw(st.sampled_from([0, -1, 2, 1000, 10**6, 10**12]))
        else:
            at[key] = draw(VALUES)
        if not data:
            break
    return data


class Bounded:
    """A block that may raise `MoshiError` and nothing else, with a short message, within 5 seconds."""

    def __enter__(self):
        self.start = time.process_time()

    def __exit__(self, kind, error, _):
        assert time.process_time() - self.start < 5
        if error is None:
            return False
        if not isinstance(error, MoshiError):
            return False
        assert len(str(error).encode("utf-8", "surrogatepass")) <= 2048
        assert clean(str(error)) == str(error)
        return True


SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def base(tiny_checkpoint):
    return tiny_checkpoint


def any_config(data, tiny):
    from random_checkpoint import TINY_HIBIKI_ZERO, TINY_LM, TINY_STT, TINY_TTS

    whole = {
        **data.draw(st.sampled_from([TINY_LM, TINY_STT, TINY_TTS, TINY_HIBIKI_ZERO])),
        "moshi_name": "model.safetensors",
        "lora": False,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in tiny.iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "config.json").unlink()
        text = json.dumps(mutated(whole, data.draw), ensure_ascii=True)
        (folder / "config.json").write_bytes(damaged(text.encode(), data.draw))
        with Bounded():
            Loader(locate(folder)).estimate()


def damaged(content: bytes, draw) -> bytes:
    """`content`, sometimes cut or with bytes changed."""
    kind = draw(st.sampled_from(["whole", "whole", "whole", "cut", "byte", "bom", "tail"]))
    at = draw(st.integers(0, max(0, len(content) - 1)))
    return {
        "whole": content, "cut": content[:at], "byte": content[:at] + draw(st.binary(max_size=3)) + content[at + 1 :], "bom": b"\xef\xbb\xbf" + content,
        "tail": content + draw(st.binary(max_size=3)),
    }[kind]  # fmt: skip


def any_codec(data, tiny):
    from random_checkpoint import TINY_MIMI

    from moshi_mlx.models.mimi_model import MimiModel

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mimi.json"
        path.write_bytes(damaged(json.dumps(mutated(TINY_MIMI, data.draw)).encode(), data.draw))
        with Bounded():
            MimiModel(MimiConfig.from_dict(read_json(path)))


def any_index(data, tiny):
    names = list(WeightsFile(tiny / "model.safetensors"))[:6]
    whole = {"metadata": {"total_size": 5}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.safetensors").symlink_to(tiny / "model.safetensors")
        (folder / "m.index.json").write_bytes(damaged(json.dumps(mutated(whole, data.draw)).encode(), data.draw))
        with Bounded():
            WeightsFile(folder / "m.index.json")


def any_header(data, tiny):
    whole = {
        "__metadata__": {"format": "mlx"},
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "text_emb.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "w.safetensors"
        text = damaged(json.dumps(mutated(whole, data.draw)).encode(), data.draw)
        length = data.draw(st.sampled_from([len(text)] * 8 + [0, 7, 1 << 40, 2**64 - 1, len(text) + 1]))
        path.write_bytes(struct.pack("<Q", length) + text + bytes(32))
        with Bounded():
            file = WeightsFile(path)
            for tensor in file:
                mx.eval(file.array(tensor))


def any_tokenizer(data, tiny):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "tokenizer.json"
        path.write_bytes(damaged(json.dumps(mutated(FAST, data.draw)).encode(), data.draw))
        with Bounded():
            read_tokenizer(path)


FAST = {
    "version": "1.0", "truncation": None, "padding": None,
    "added_tokens": [{"id": 1, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
    "pre_tokenizer": None, "post_processor": None, "decoder": None,
    "model": {
        "type": "Unigram", "unk_id": 0, "byte_fallback": False,
        "vocab": [["<unk>", 0.0], ["<s>", 0.0], ["\u2581", -2.0], *([c, -3.0 - i / 10] for i, c in enumerate("abcdefghijklmnopqrstuvwxyz"))],
    },
}  # fmt: skip
KINDS = {f.__name__: f for f in (any_config, any_codec, any_index, any_header, any_tokenizer)}


@pytest.mark.parametrize("kind", KINDS)
def test_any_json_is_a_sentence_or_a_model(kind, base):
    @SETTINGS
    @given(st.data())
    def check(data):
        KINDS[kind](data, base)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_any_json_for_long(kind, base):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @LONG
    @given(st.data())
    def check(data):
        KINDS[kind](data, base)

    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2_000_000


def test_a_sentencepiece_model_whose_fault_is_no_text(tmp_path):
    whole = (Path(__file__).parent / "goldens" / "system" / "question_a" / "tokenizer.model").read_bytes()
    (tmp_path / "t.model").write_bytes(whole.replace(b"<0x41>", b"<0x\xd21>"))
    with pytest.raises(CheckpointError, match="t.model is not a sentencepiece model"):
        read_tokenizer(tmp_path / "t.model")


def test_any_bytes_as_a_sentencepiece_model(tmp_path):
    write_tokenizer(tmp_path / "t.model", 60)
    whole = (tmp_path / "t.model").read_bytes()

    @SETTINGS
    @given(st.data())
    def check(data):
        path = tmp_path / "d.model"
        path.write_bytes(damaged(whole, data.draw))
        with Bounded():
            read_tokenizer(path)

    check()
