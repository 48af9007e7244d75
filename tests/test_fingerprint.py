"""Which model a conversation belongs to: the same for every copy of a checkpoint, another for every other model."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import mlx.core as mx
import pytest

from moshi_mlx import checkpoint
from moshi_mlx.checkpoint.fingerprint import fingerprint, without_names
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.checkpoint.weights_writer import WeightsWriter
from moshi_mlx.errors import CheckpointError, MoshiError

GIVEN_OUT = "sha256:bb979bf0ed7d67a1344d9fe573427fb671dc2d65123284127de02701b02c4670"


def weights(folder: Path) -> Path:
    return folder / json.loads((folder / "config.json").read_text())["moshi_name"]


def of(folder: Path) -> str:
    return checkpoint.load(folder, with_codec=False).fingerprint


def change_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}, indent=4))


def test_a_copy_is_the_same_model(tiny_checkpoint, tiny_copy):
    expected = of(tiny_checkpoint)
    assert expected.startswith("sha256:") and len(expected) == 71
    assert of(tiny_copy) == expected
    # Called otherwise, and its metadata and order changed.
    old = weights(tiny_copy)
    arrays = mx.load(str(old))
    mx.save_safetensors(str(tiny_copy / "other.safetensors"), dict(reversed(arrays.items())), {"made": "later"})
    old.unlink()
    change_config(tiny_copy, moshi_name="other.safetensors")
    assert of(tiny_copy) == expected


def test_shards_are_the_same_model(tiny_checkpoint, tiny_copy):
    old = weights(tiny_copy)
    names = sorted(arrays := mx.load(str(old)))
    index = {}
    for i in (0, 1):
        part = {name: arrays[name] for name in names[i::2]}
        mx.save_safetensors(str(tiny_copy / f"part{i}.safetensors"), part)
        index |= dict.fromkeys(part, f"part{i}.safetensors")
    (tiny_copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    old.unlink()
    change_config(tiny_copy, moshi_name="model.safetensors.index.json")
    assert of(tiny_copy) == of(tiny_checkpoint)


def test_another_model_is_another(tiny_checkpoint, tiny_copy):
    seen = {of(tiny_checkpoint)}
    raw, path = (file := weights(tiny_copy)).read_bytes(), weights(tiny_copy)
    middle = next(t for name, t in WeightsFile(path).items() if name == "text_emb.weight")
    at = (middle.start + middle.stop) // 2
    file.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    seen.add(of(tiny_copy))
    file.write_bytes(raw)
    change_config(tiny_copy, max_period=20000.0)
    seen.add(of(tiny_copy))
    change_config(tiny_copy, max_period=10000)
    codec = tiny_copy / json.loads((tiny_copy / "config.json").read_text())["mimi_name"]
    arrays = mx.load(str(codec))
    name = sorted(arrays)[0]
    arrays[name] = arrays[name] + 1
    mx.save_safetensors(str(codec), arrays)
    seen.add(of(tiny_copy))
    assert len(seen) == 4


def test_what_is_packed_while_it_loads_is_another(tiny_checkpoint, tiny_copy):
    expected = {bits: checkpoint.load(tiny_checkpoint, quantized=bits, with_codec=False).fingerprint for bits in (4, 8)}
    assert len({of(tiny_checkpoint), *expected.values()}) == 3
    assert checkpoint.load(tiny_copy, quantized=4, with_codec=False).fingerprint == expected[4]


def test_what_is_packed_in_its_file_is_as_it_was(tmp_path):
    """`quantized` says then no more than the file does."""
    from random_checkpoint import write

    write(tmp_path, "tiny", 8, seed=1)
    assert checkpoint.load(tmp_path, quantized=8, with_codec=False).fingerprint == of(tmp_path)


def test_fingerprints_that_were_given_out_stay():
    """Users keep conversations: this is what version 1.1.0 wrote."""
    assert of(Path(__file__).parent / "goldens" / "lm" / "lut_cfg") == GIVEN_OUT


def test_parts_names_types_and_shapes_count(tmp_path):
    """The same bytes, told apart by what they are said to be."""
    seen = set()
    for i, (name, kind, shape) in enumerate(
        [("a", "F32", (4, 2)), ("b", "F32", (4, 2)), ("a", "F32", (2, 4)), ("a", "F16", (4, 4)), ("a", "I32", (4, 2))]
    ):
        path = tmp_path / f"{i}.safetensors"
        with WeightsWriter(path, [(name, kind, shape)]) as writer:
            writer.write(name, mx.zeros(shape, {"F32": mx.float32, "F16": mx.float16, "I32": mx.int32}[kind]))
            writer.commit()
        seen.add(fingerprint({}, [WeightsFile(path)]))
    one = WeightsFile(tmp_path / "0.safetensors")
    seen |= {fingerprint({}, [one, one]), fingerprint({"a": 1}, [one]), fingerprint({}, []), fingerprint(None, [one])}
    assert len(seen) == 9
    assert without_names({"dim": 1, "moshi_name": "x"}) == {"dim": 1}


def test_large_files_are_looked_at_in_places(tmp_path):
    """As many tensors as a large model has and 15 GB of holes: nobody waits for this."""
    path = tmp_path / "large.safetensors"
    rows, columns = 4096, 4608
    size = 2 * rows * columns
    header = {
        f"layer.{i}": {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(400)
    }
    text = json.dumps(header).encode()
    with path.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        f.truncate(8 + len(text) + 400 * size)
    assert path.stat().st_size > 15e9
    begun = time.perf_counter()
    assert fingerprint({}, [WeightsFile(path)]).startswith("sha256:")
    assert time.perf_counter() - begun < 2


def test_a_file_that_has_gone(tiny_copy):
    loaded = checkpoint.load(tiny_copy, with_codec=False)
    assert loaded.files.mimi is not None
    part = WeightsFile(loaded.files.mimi)
    shutil.rmtree(tiny_copy)
    with pytest.raises(CheckpointError, match="cannot be read any more: No such file"):
        fingerprint({}, [part])
    with pytest.raises(MoshiError, match="does not exist"):
        _ = loaded.fingerprint
