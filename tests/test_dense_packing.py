"""`-q` on dense weights: packed tensor by tensor while they load, to the bits that `moshi_mlx.quantize` writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from moshi_mlx.quantize.__main__ import main as quantize
from random_checkpoint import write

from moshi_mlx.checkpoint import Loader, load, recipe_table, recipes
from moshi_mlx.checkpoint.files import Overrides, locate
from moshi_mlx.checkpoint.packing import Quantization, pack, packed_bytes, packed_specs
from moshi_mlx.config import CheckpointConfig

ROOT = Path(__file__).resolve().parent.parent


def parameters(lm) -> dict[str, mx.array]:
    return dict(tree_flatten(lm.parameters()))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("preset", ["tiny", "tiny-tts", "tiny-personaplex", "tiny-stt"])
def test_the_same_bits_as_quantize(tmp_path, preset, bits):
    write(tmp_path / "dense", preset, None, seed=3)
    assert quantize([str(tmp_path / "dense"), str(tmp_path / "packed"), "-q", str(bits), "--no-verify"]) == 0
    loaded = load(tmp_path / "dense", quantized=bits, with_codec=False)
    stored = load(tmp_path / "packed", quantized=bits, with_codec=False)
    a, b = parameters(loaded.lm), parameters(stored.lm)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert mx.array_equal(a[name], b[name]).item(), name
    assert loaded.precision == stored.precision
    assert any(f"packed to {bits} bits while loading" in note for note in loaded.notes)
    assert not stored.notes


def test_an_adapter_is_in_what_is_packed(tmp_path):
    case = ROOT / "tests/goldens/family/lora"
    base, config, adapter = (str(case / name) for name in ("base.safetensors", "config.json", "lora.safetensors"))
    # Its layers are 32 wide.
    flags = ["-q", "4", "--lm-config", config, "--lora", adapter, "--no-verify"]
    assert quantize([base, str(tmp_path / "packed"), *flags]) == 0
    files = locate(overrides=Overrides(moshi=base, config=config, lora=adapter))
    loaded = Loader(files, quantized=4, with_codec=False).load()
    stored = load(tmp_path / "packed", with_codec=False)
    a, b = parameters(loaded.lm), parameters(stored.lm)
    assert a.keys() == b.keys()
    for name in a:
        assert mx.array_equal(a[name], b[name]).item(), name


def test_numbers_that_are_none_are_found_before_they_are_packed(tiny_copy):
    tensors = dict(mx.load(str(tiny_copy / "model.safetensors")))
    x = tensors["text_linear.weight"]
    tensors["text_linear.weight"] = mx.concatenate([x[:-1], mx.full((1, x.shape[1]), mx.nan, x.dtype)])
    mx.save_safetensors(str(tiny_copy / "model.safetensors"), tensors)
    with pytest.raises(ValueError, match="NaN or infinite values in text_linear.weight"):
        load(tiny_copy, quantized=4)


def test_sizes_are_those_of_what_is_made():
    x = mx.random.normal((6, 128)).astype(mx.bfloat16)
    for q in (Quantization(32, 4), Quantization(64, 8), Quantization(32, 3), *recipes.FLOAT_MODES.values()):
        parts = pack(x, q)
        assert [tuple(p.shape) for p in parts] == [shape for *_, shape in packed_specs("x", (6, 128), "BF16", q)]
        assert sum(p.nbytes for p in parts) == packed_bytes((6, 128), q)


# What a kind of model keeps -------------------------------------------------------------------------------------------


def packing_of(preset: str, bits: int) -> recipes.Packing:
    from random_checkpoint import PRESETS

    config = CheckpointConfig.from_dict(PRESETS[preset][0])
    name = recipes.default_recipe(config)
    return recipes.by_rules(recipes.layers_of(config.lm), recipe_table.RECIPES[name], recipes.base(bits))


def test_text_to_speech_keeps_its_depth_transformer():
    found = packing_of("tiny-tts", 4)
    assert not any(path.startswith("depformer.") for path in found.layers)
    assert not any("cross_attention" in path or path.startswith("condition_provider.") for path in found.layers)
    assert found.layers["text_linear"].bits == found.layers["audio_embs.3"].bits == 8
    assert found.layers["transformer.layers.0.gating.linear_in"].bits == 4


def test_personaplex_keeps_8_bits_in_its_depth_transformer():
    found = packing_of("tiny-personaplex", 4)
    depth = {q.bits for path, q in found.layers.items() if path.startswith("depformer.")}
    assert depth == {8}
    assert found.layers["transformer.layers.1.self_attn.in_proj"].bits == 4


def test_moshi_is_packed_as_published(tiny_checkpoint, tmp_path):
    assert {q.bits for q in packing_of("tiny", 4).layers.values()} == {4}
    assert quantize([str(tiny_checkpoint), str(tmp_path / "q"), "-q", "4"]) == 0
    assert json.loads((tmp_path / "q/config.json").read_text())["moshi_name"] == "model.q4.safetensors"


@pytest.mark.parametrize("preset", ["tiny-tts", "tiny-personaplex"])
def test_uniform_is_what_the_published_package_reads(tmp_path, preset):
    """Every layer that `nn.quantize` of a whole model packs, under the published name; the card says which recipe it was."""
    import mlx.nn as nn

    from moshi_mlx.models import Lm, LmConfig

    write(tmp_path / "dense", preset, None, seed=3)
    assert (
        quantize([str(tmp_path / "dense"), str(tmp_path / "q"), "-q", "8", "--recipe", "uniform", "--no-verify"]) == 0
    )
    config = json.loads((tmp_path / "q/config.json").read_text())
    assert config["moshi_name"] == "model.q8.safetensors"
    lm = Lm(LmConfig.from_config_dict(config))
    nn.quantize(
        lm,
        bits=8,
        group_size=64,
        class_predicate=lambda _, m: hasattr(m, "to_quantized") and m.weight.shape[-1] % 64 == 0,
    )
    assert set(parameters(lm)) == set(mx.load(str(tmp_path / "q/model.q8.safetensors")))
    assert "recipe | uniform (every layer alike" in (tmp_path / "q/README.md").read_text()
    assert quantize([str(tmp_path / "dense"), str(tmp_path / "own"), "-q", "4", "--no-verify"]) == 0
    card = (tmp_path / "own/README.md").read_text()
    assert f"recipe | {recipes.default_recipe(CheckpointConfig.from_dict(config))} (the depth transformer" in card
    assert json.loads((tmp_path / "own/config.json").read_text())["moshi_name"].startswith("model.q4-depth-")


# Memory ---------------------------------------------------------------------------------------------------------------

_MEASURE = """
import sys, mlx.core as mx
from moshi_mlx.checkpoint import Loader
from moshi_mlx.checkpoint.files import locate
loader = Loader(locate(sys.argv[1]), quantized=4, with_codec=False)
packed = loader.estimate().weights
mx.set_cache_limit(int(sys.argv[2]))
mx.reset_peak_memory()
loaded = loader.load()
largest = max(t.nbytes for t in loader.weights.values())
print(mx.get_peak_memory(), mx.get_active_memory(), packed, largest, loader.weights.nbytes)
"""


def test_memory_is_that_of_the_packed_model(tmp_path):
    """Never more than the packed size, the largest tensor and half a gigabyte; far less than the dense model."""
    from random_checkpoint import TINY_LM, write_lm

    config = {**TINY_LM, "dim": 1024, "num_heads": 8, "num_layers": 12, "context": 250}
    write_lm(tmp_path / "model.safetensors", config, None, seed=1)
    (tmp_path / "config.json").write_text(json.dumps(config))
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path), str(1 << 30)], capture_output=True, text=True, check=True
    )
    peak, active, packed, largest, stored = map(int, run.stdout.split())
    assert active <= 1.02 * packed
    # A tensor passes as it is stored, its packed form beside it; the slack of half a gigabyte would hide everything here.
    assert peak <= packed + 3 * largest
    assert peak < stored / 2
