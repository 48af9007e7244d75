"""Packed weights of which one tensor has lost its name: the sentence that plain files get."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from moshi_mlx.convert.__main__ import main as convert
from moshi_mlx.quantize.__main__ import main as quantize
from random_checkpoint import write

from moshi_mlx.checkpoint import Loader, load_lm_file
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.errors import CheckpointError

LACKS = "lacks 1 tensor that the configuration asks for: {}\\."
CODEC = "encoder_transformer.transformer.layers.0."


def misspell(path: Path, name: str) -> None:
    """Another last letter in the header."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header, wanted = raw[8 : 8 + length], f'"{name}"'.encode()
    assert header.count(wanted) == 1
    path.write_bytes(raw[:8] + header.replace(wanted, f'"{name[:-1]}u"'.encode()) + raw[8 + length :])


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny_checkpoint) -> Path:
    """In 4 bits, the codec too."""
    made = tmp_path_factory.mktemp("packed") / "made"
    assert quantize([str(tiny_checkpoint), str(made), "-q", "4", "--codec-bits", "4"]) == 0
    return made


@pytest.mark.parametrize(
    "name",
    ["text_linear.weight", "text_emb.weight", "audio_embs.3.weight", "transformer.layers.1.self_attn.in_proj.weight", "depformer.slices.7.linear_out.weight"],
)  # fmt: skip
def test_a_model(packed, tmp_path, name):
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    misspell(folder / "model.q4.safetensors", name)
    with pytest.raises(CheckpointError, match=LACKS.format(re.escape(name))):
        Loader(locate(folder), with_codec=False).load()


@pytest.mark.parametrize(("command", "flags"), [(convert, []), (quantize, ["-q", "8"])], ids=["convert", "quantize"])
def test_what_is_made_of_it(packed, tmp_path, command, flags):
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    misspell(folder / "model.q4.safetensors", "text_linear.weight")
    with pytest.raises(CheckpointError, match=LACKS.format("text_linear.weight")):
        command([str(folder), str(tmp_path / "made"), *flags])
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name", [f"{CODEC}{part}.weight" for part in ("self_attn.in_proj", "self_attn.out_proj", "gating.linear1")]
)
def test_a_codec(packed, tmp_path, name):
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    misspell(folder / json.loads((folder / "config.json").read_text())["mimi_name"], name)
    with pytest.raises(CheckpointError, match=LACKS.format(re.escape(name))):
        Loader(locate(folder)).load()


@pytest.mark.parametrize("part", ["scales", "biases"])
def test_what_belongs_to_the_weight(packed, tmp_path, part):
    folder = Path(shutil.copytree(packed, tmp_path / "copy"))
    misspell(folder / "model.q4.safetensors", f"text_linear.{part}")
    with pytest.raises(CheckpointError, match="text_linear"):
        Loader(locate(folder), with_codec=False).load()


def test_a_layer_that_keeps_its_values(tmp_path):
    """Loading that is not strict leaves alone what the file lacks."""
    write(tmp_path, "tiny", 4, seed=1)
    lm = Loader(locate(tmp_path), with_codec=False).load().lm
    misspell(tmp_path / "model.q4.safetensors", "text_linear.weight")
    load_lm_file(lm, tmp_path / "model.q4.safetensors", strict=False)
