"""Damaged and hostile folders and conversations: one sentence, no crash."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from native_cases import ROOT, export_small, small_rings, sound, talk

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.checkpoint.weights_writer import TYPE_NAMES
from moshi_mlx.session import Session
from moshi_mlx.session.conversation_file import save_conversation

QUESTION = ROOT / "tests" / "goldens" / "system" / "question_a"


class Victim:
    """A program that loads whatever it is told to, and lives on."""

    def __init__(self, library: Path, folder: Path):
        program = [sys.executable, str(ROOT / "tests" / "native_program.py"), str(library), str(folder)]
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, what: str, path: Path) -> dict[str, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({what: str(path)}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"{what} {path}: the program died ({self._process.wait()})"
        answer = json.loads(line)
        for sentence in answer.values():
            assert "\n" not in sentence
            assert len(sentence) < 600
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(30) == 0


@pytest.fixture(scope="module")
def loaded():
    return checkpoints.load(QUESTION)


@pytest.fixture(scope="module")
def folder(loaded, tmp_path_factory):
    return export_small(loaded, tmp_path_factory.mktemp("hostile") / "good")


@pytest.fixture
def victim(native, folder):
    victim = Victim(native.library, folder)
    yield victim
    victim.close()


@pytest.fixture
def bad(folder, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(folder, tmp_path / "bad"))


def restore(folder: Path, bad: Path, name: str) -> None:
    shutil.copyfile(folder / name, bad / name)


def refresh(bad: Path, name: str) -> None:
    """Write a file's new length and checksum into the manifest, as somebody would who means it."""
    manifest = json.loads((bad / "manifest.json").read_text())
    content = (bad / name).read_bytes()
    manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bad / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("flips", [8, pytest.param(300, marks=pytest.mark.slow)])
def test_cut_and_flipped_files(victim, folder, bad, flips):
    """Of every file: missing, cut anywhere, any bit flipped. Loading checks all but the numbers of the weights, `moshi_verify` those too."""
    assert victim.ask("load", bad) == {"reason": "", "verified": ""}
    rng = np.random.default_rng(0)
    tried = 0
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        header = 8 + struct.unpack("<Q", content[:8])[0] if path.suffix == ".safetensors" else len(content)
        checked = path.name != "README.md"
        (bad / path.name).unlink()
        assert victim.ask("load", bad)["reason"]
        lengths = [0, 1, 7, len(content) - 1, *rng.integers(0, len(content), 3)]
        for length in lengths:
            (bad / path.name).write_bytes(content[: int(length)])
            whole = path.name == "manifest.json" and length == len(content) - 1  # without its last newline
            assert bool(victim.ask("load", bad)["reason"]) != whole, (path.name, length)
        (bad / path.name).write_bytes(content + b"x")
        assert victim.ask("load", bad)["reason"], path.name
        for at in rng.integers(0, min(header, len(content)) if checked else len(content), flips):
            damaged = bytearray(content)
            damaged[at] ^= 1 << int(rng.integers(0, 8))
            (bad / path.name).write_bytes(damaged)
            answer = victim.ask("load", bad)
            if path.name != "manifest.json":
                assert answer["verified"], (path.name, at)
                assert answer["reason"] or path.name in ("README.md", "weights.safetensors"), (path.name, at)
        if path.name == "weights.safetensors":
            # Numbers that are other numbers: loads, and moshi_verify knows.
            damaged = bytearray(content)
            damaged[-5] ^= 4
            (bad / path.name).write_bytes(damaged)
            answer = victim.ask("load", bad)
            assert not answer["reason"]
            assert "is damaged: its checksum is not the manifest's" in answer["verified"]
        restore(folder, bad, path.name)
        tried += len(lengths) + flips + 2
    assert tried > 80


def test_files_that_were_damaged_on_purpose(victim, folder, bad):
    """With lengths and checksums to match: headers of safetensors say anything, functions end anywhere or are another's."""
    rng = np.random.default_rng(1)
    for name in ("weights.safetensors", "start.safetensors"):
        content = (folder / name).read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        for _ in range(10):
            damaged = bytearray(content)
            for at in rng.integers(0, 8 + length, int(rng.integers(1, 4))):
                damaged[at] = int(rng.integers(32, 127)) if at >= 8 else int(rng.integers(0, 256))
            (bad / name).write_bytes(damaged)
            refresh(bad, name)
            victim.ask("load", bad)
        header = json.loads(content[8 : 8 + length])
        first = next(n for n in header if n != "__metadata__")
        for change in ({"data_offsets": [0, 1 << 40]}, {"shape": [1 << 30, 1 << 30]}, {"dtype": "F64"}, {"shape": [3]}):
            text = json.dumps({**header, first: {**header[first], **change}}).encode()
            (bad / name).write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
            refresh(bad, name)
            assert victim.ask("load", bad)["reason"], change
        (bad / name).write_bytes(b"PK\x03\x04" + content[4:])
        refresh(bad, name)
        assert "no safetensors file" in victim.ask("load", bad)["reason"]
        restore(folder, bad, name)
        restore(folder, bad, "manifest.json")
    for name in ("frame.mlxfn", "first.mlxfn"):
        content = (folder / name).read_bytes()
        for length in (0, 5, 100, len(content) // 2, len(content) - 1):
            (bad / name).write_bytes(content[:length])
            refresh(bad, name)
            assert victim.ask("load", bad)["reason"], (name, length)
        restore(folder, bad, name)
        restore(folder, bad, "manifest.json")
    shutil.copyfile(folder / "first.mlxfn", bad / "frame.mlxfn")
    refresh(bad, "frame.mlxfn")
    assert "frame.mlxfn" in victim.ask("load", bad)["reason"]


def test_more_than_memory(native, bad):
    """A file of 8 TB that is not on the disk, with a modest word about it in the manifest."""
    try:
        with (bad / "weights.safetensors").open("r+b") as f:
            f.truncate(1 << 43)
    except OSError:
        pytest.skip("this file system holds no such file")
    manifest = json.loads((bad / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"]["bytes"] = 1 << 43
    (bad / "manifest.json").write_text(json.dumps(manifest))
    answer, _ = native.run(bad, [])
    assert "of memory, this machine has" in answer["error"]


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """Every place in a JSON value, but for most of the text pieces."""
    if path:
        yield path
    members = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, member in members:
        if path != ("text", "pieces") or key < 3:
            yield from places(member, (*path, key))


def changed(manifest: dict, path: tuple, value: Any) -> dict:
    manifest = copy.deepcopy(manifest)
    inside = manifest
    for key in path[:-1]:
        inside = inside[key]
    if value is KeyError:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return manifest


ODD = [KeyError, None, -1, 0, 1e18, 0.5, "", "../secret", [], {}]


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_manifests_that_say_anything(victim, folder, bad, every):
    good = json.loads((folder / "manifest.json").read_text())
    tried = refused = 0
    for path in places(good):
        for odd in (ODD if len(path) < 3 or path[0] == "rings" else ODD[::3])[tried % every :: every]:
            (bad / "manifest.json").write_text(json.dumps(changed(good, path, odd)))
            reason = victim.ask("load", bad)["reason"]
            tried, refused = tried + 1, refused + bool(reason)
            if path[0] in ("files", "functions", "weights", "starts", "format", "mlx", "device"):
                # What loading does not look at: a name, a file that no graph reads, the checksum of the weights.
                harmless = (
                    path[-1] == "name" or "README.md" in path or path == ("files", "weights.safetensors", "sha256")
                )
                assert reason or harmless or odd == changed_value(good, path), (path, odd)
    assert tried > 500 // every
    assert refused > tried // 2


def changed_value(manifest: dict, path: tuple) -> Any:
    for key in path:
        manifest = manifest[key]
    return manifest


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("format",), 2, "the format is 2, this library reads 1"),
        (("mlx",), "0.31.2", "was written by MLX 0.31.2, this program runs"),
        (("device",), "tpu", "was written for the tpu"),
        (("functions", "frame", "file"), "../frame.mlxfn", "does not stay in the folder"),
        (("functions", "frame", "file"), "/etc/passwd", "does not stay in the folder"),
        (("starts", 0, "file"), "a/b.safetensors", "does not stay in the folder"),
        (("weights",), "..", "does not stay in the folder"),
        (("weights",), "other.safetensors", "'files' lacks other.safetensors"),
        (("memory", "weights"), 1 << 49, "of memory, this machine has"),
        (("audio", "frame_size"), 1921, "does not belong to the other files of its folder"),
        (("tokens", "codebooks"), 7, "does not give the tokens that the manifest speaks of"),
        (("rings", "capacities"), [16, 32, 41], "does not belong to the other files of its folder"),
        (("rings", "capacities"), [32, 16], "'capacities' should grow"),
        (("rings", "axis"), 2, ""),
        (("functions", "frame", "results"), ["pcm"], ""),
    ],
)
def test_sentences(victim, folder, bad, path, value, words):
    manifest = json.loads((folder / "manifest.json").read_text())
    (bad / "manifest.json").write_text(json.dumps(changed(manifest, path, value)))
    reason = victim.ask("load", bad)["reason"]
    assert reason
    assert words in reason


def endless(path: Path, metadata: dict, arrays: dict[str, mx.array], rings: set[str]) -> None:
    """A conversation whose rings have 100 million slots, in a file with nothing but zeros that are not on the disk."""
    header: dict = {"__metadata__": metadata}
    at = 0
    for name, array in arrays.items():
        shape = [n if axis != 3 or name not in rings else 10**8 for axis, n in enumerate(array.shape)]
        size = math.prod(shape) * array.itemsize
        header[name] = {"dtype": TYPE_NAMES[array.dtype], "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        f.truncate(8 + len(text) + at)


def test_conversations_of_strangers(victim, loaded, tmp_path):
    """What Python refuses, and the library: other models, other sizes, indices out of their tables, numbers that are none."""
    small = pytest.MonkeyPatch()
    small_rings(small, 16)
    session = Session(loaded)
    talk(session, sound(30))
    path = tmp_path / "talk.safetensors"
    save_conversation(session, path)
    small.undo()
    assert victim.ask("restore", path)["reason"] == ""
    arrays, metadata = mx.load(str(path), return_metadata=True)

    def refused(changes: dict, about: dict | None = None) -> str:
        kept = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
        mx.save_safetensors(str(path), kept, metadata if about is None else about)
        reason = victim.ask("restore", path)["reason"]
        assert reason, changes
        return reason

    def filled(name: str, value) -> dict:
        return {name: mx.full(arrays[name].shape, value, arrays[name].dtype)}

    assert "another model" in refused({}, {**metadata, "model": "0" * 64})
    assert "no saved conversation" in refused({}, {"format": "moshi_mlx conversation 7"}).replace("is not a", "no")
    assert "not a saved conversation" in refused({}, {})
    assert "more is not known here" in refused({"more": mx.zeros(1)})
    assert "lacks lm.seed" in refused({"lm.seed": None})
    for name, array in arrays.items():
        refused({name: mx.concatenate([array.reshape(-1), array.reshape(-1)])})
        if array.dtype != mx.bool_:
            refused({name: array.astype(mx.float16 if array.dtype != mx.float16 else mx.float32)})
        if array.dtype == mx.float32:
            assert "NaN or infinity" in refused(filled(name, float("nan")))
        if array.dtype == mx.int32:
            for odd in (-3, 2**30 + 1, 2**31 - 1, -(2**31)):
                refused(filled(name, odd))
    assert "a code of the next frames" in refused(filled("lm.tokens", loaded.lm.cfg.card))
    assert "clocks stand at" in refused({"lm.offset": arrays["lm.offset"] + 1})
    assert "has not begun" in refused(
        {
            "lm.offset": mx.array(0),
            "lm.trunk.position": mx.array(0),
            **{n: mx.zeros_like(a) for n, a in arrays.items() if n.endswith("transformer.position")},
        }
    )
    assert "a clock of the codec" in refused(
        {"encoder.transformer.position": arrays["encoder.transformer.position"] + 1}
    )
    rings = {n: a for n, a in arrays.items() if n.startswith("lm.trunk.layers.")}
    assert "different sizes" in refused(
        {next(iter(rings)): mx.zeros((*next(iter(rings.values())).shape[:3], 5, next(iter(rings.values())).shape[4]))}
    )
    assert "slots" in refused({n: a[:, :, :, :20] for n, a in rings.items()})
    assert "slots" in refused({n: mx.concatenate([a, a], axis=3) for n, a in rings.items()})
    endless(path, metadata, arrays, set(rings))
    assert "rings of 100000000 slots" in victim.ask("restore", path)["reason"]
    for odd in ([4, 65, 65, 65], [1, 65, 0, 0], [3, 0xE2, 0x82, 0xAC]):
        refused({"text": mx.array([odd], mx.uint8)})
    mx.save_safetensors(str(path), arrays, metadata)
    content = path.read_bytes()
    rng = np.random.default_rng(3)
    length = struct.unpack("<Q", content[:8])[0]
    for _ in range(40):
        damaged = bytearray(content)
        for at in rng.integers(0, 8 + length, 2):
            damaged[at] = int(rng.integers(32, 127)) if at >= 8 else int(rng.integers(0, 256))
        path.write_bytes(damaged)
        victim.ask("restore", path)
    for length in rng.integers(0, len(content), 20):
        path.write_bytes(content[: int(length)])
        assert victim.ask("restore", path)["reason"]
    assert victim.ask("restore", tmp_path)["reason"]
