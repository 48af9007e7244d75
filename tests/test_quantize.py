"""The quantiser as a command: what is packed how, that it is exactly MLX's packing, and how it is recorded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import golden_convert
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden_convert import assert_same, convert, load
from mlx.utils import tree_flatten
from moshi_mlx.quantize import codec, mixed, recipe_files
from moshi_mlx.quantize.__main__ import main

from moshi_mlx import run_inference
from moshi_mlx.checkpoint import Loader, fill, load_lm_file, load_mimi_file, packing, recipes
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.checkpoint.recipes import Packing
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.config import MimiConfig
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.errors import InputError, MoshiError
from moshi_mlx.models.lm import Lm
from moshi_mlx.models.mimi_model import MimiModel

GOLDENS = Path(__file__).parent / "goldens"
DEFAULTS = {2: 32, 3: 32, 4: 32, 5: 64, 6: 64, 8: 64}
KINDS = [
    *((["-q", str(bits)], Quantization(group, bits)) for bits, group in DEFAULTS.items()),
    *((["-q", str(bits), "--group-size", str(group)], Quantization(group, bits))
      for bits, usual in DEFAULTS.items() for group in (32, 64, 128) if group != usual),
    (["--mode", "mxfp4"], Quantization(32, 4, "mxfp4")), (["--mode", "mxfp8"], Quantization(32, 8, "mxfp8")),
    (["--mode", "nvfp4"], Quantization(16, 4, "nvfp4")),
]  # fmt: skip


def quantize(source: Path, destination: Path, *flags: str) -> Path:
    assert main([str(source), str(destination), *flags]) == 0
    return destination


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def weights_of(folder: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(folder / config_of(folder)["moshi_name"])))


def whole_model(source: Path, q: Quantization) -> dict[str, mx.array]:
    """What `nn.quantize` makes of the loaded model."""
    lm = Lm(CheckpointConfig.from_dict(config_of(source)).lm)
    load_lm_file(lm, source / "model.safetensors")

    def fills_groups(path: str, layer: nn.Module) -> bool:
        return hasattr(layer, "to_quantized") and layer.weight.shape[-1] % q.group_size == 0

    nn.quantize(lm, q.group_size, q.bits, mode=q.mode, class_predicate=fills_groups)
    return dict(tree_flatten(lm.parameters()))


# The numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "q"), KINDS, ids=lambda x: "".join(x) if isinstance(x, list) else "")
def test_every_kind_is_what_nn_quantize_makes(tiny_checkpoint, tmp_path, flags, q):
    made = quantize(tiny_checkpoint, tmp_path / "made", *flags)
    assert_same(weights_of(made), whole_model(tiny_checkpoint, q))
    said = config_of(made)["quantization"]
    dense = {path for path, entry in said.items() if entry is False}
    assert {k: v for k, v in said.items() if k not in dense} == {
        "group_size": q.group_size,
        "bits": q.bits,
        "mode": q.mode,
    }
    # The depth transformer is 64 wide, half a group.
    assert bool(dense) == (q.group_size == 128)
    # Loads without a flag, as every command does.
    loader = Loader(locate(made), dtype=mx.float32)
    assert set(loader.quantizations.values()) == {q}
    assert loader.load().lm.dep_q == 8


def test_published_names(tiny_checkpoint, tmp_path):
    names = {}
    for i, flags in enumerate(
        (
            ["-q", "4"],
            ["-q", "8"],
            ["-q", "4", "--group-size", "64"],
            ["--mode", "mxfp4"],
            ["-q", "8", "--recipe", "heads-bf16"],
        )
    ):
        names[" ".join(flags)] = config_of(quantize(tiny_checkpoint, tmp_path / str(i), *flags))["moshi_name"]
    assert names == {
        "-q 4": "model.q4.safetensors", "-q 8": "model.q8.safetensors", "-q 4 --group-size 64": "model.q4-g64.safetensors",
        "--mode mxfp4": "model.mxfp4.safetensors", "-q 8 --recipe heads-bf16": "model.q8-heads-bf16.safetensors",
    }  # fmt: skip


def test_from_any_format(tmp_path):
    """PyTorch shards and Candle, quantised without a detour, give the same file as by way of the MLX layout."""
    made = {}
    for case in ("pytorch_shards", "candle"):
        made[case] = quantize(GOLDENS / "convert" / case / "source", tmp_path / case, "-q", "4")
    by_way = quantize(
        convert(GOLDENS / "convert" / "candle" / "source", tmp_path / "mlx"), tmp_path / "by_way", "-q", "4"
    )
    assert_same(weights_of(made["pytorch_shards"]), weights_of(by_way))
    assert_same(weights_of(made["candle"]), weights_of(by_way))


def test_an_adapter_is_merged_before_packing(tmp_path):
    case = GOLDENS / "family" / "lora"
    source = golden_convert.only(case, tmp_path, "config.json")
    shutil.copy(case / "base.safetensors", source / "model.safetensors")
    merged = convert(source, tmp_path / "merged", "--lora", str(case / "lora.safetensors"))
    direct = quantize(
        source, tmp_path / "direct", "-q", "8", "--group-size", "32", "--lora", str(case / "lora.safetensors")
    )
    assert_same(weights_of(direct), weights_of(quantize(merged, tmp_path / "later", "-q", "8", "--group-size", "32")))


def test_layers_that_fill_no_group_stay_dense(tmp_path):
    """As in models with narrow conditioners; said in the configuration, loaded without a flag."""
    source = golden_convert.only(GOLDENS / "lm" / "lut_cfg", tmp_path, "config.json", "model.safetensors")
    made = quantize(source, tmp_path / "made", "-q", "4")
    said, tensors = config_of(made)["quantization"], weights_of(made)
    dense = [path for path, entry in said.items() if entry is False]
    assert dense
    for path in dense:
        assert f"{path}.scales" not in tensors
        assert tensors[f"{path}.weight"].shape[-1] % 32
    assert load(made).cfg.conditioners
    with pytest.raises(InputError, match="no layer of this model can be packed in groups of 128"):
        recipes.by_rules({"a": (4, 64)}, [], Quantization(128, 4))


# Recipes ----------------------------------------------------------------------------------------------------------


def test_heads_bf16(tiny_checkpoint, tmp_path):
    made = quantize(tiny_checkpoint, tmp_path / "made", "-q", "8", "--recipe", "heads-bf16")
    said, tensors = config_of(made)["quantization"], weights_of(made)
    left = {path for path, entry in said.items() if entry is False}
    assert {
        "text_emb",
        "text_linear",
        "audio_embs.3",
        "depformer.slices.2.emb",
        "depformer.slices.7.linear_out",
    } <= left
    assert not any("transformer" in path or "linear_in" in path for path in left)
    packed = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    assert not packed & left
    assert "depformer.slices.0.linear_in" in packed
    assert load(made).dep_q == 8


def test_rules_from_a_file(tiny_checkpoint, tmp_path):
    rules = [
        {"layers": r"transformer\.layers\.0\..*", "bits": 8, "group_size": 32},
        {"layers": r"depformer\.slices\.\d+\.transformer", "mode": "mxfp4"},
        {"layers": "text_emb", "dense": True},
    ]
    (tmp_path / "mine.json").write_text(json.dumps({"rules": rules}))
    made = quantize(tiny_checkpoint, tmp_path / "made", "-q", "4", "--recipe", str(tmp_path / "mine.json"))
    found = Loader(locate(made), dtype=mx.float32).quantizations
    assert found["transformer.layers.0.gating.linear_in"] == Quantization(32, 8)
    assert found["transformer.layers.1.gating.linear_in"] == Quantization(32, 4)
    assert found["depformer.slices.3.transformer.layers.0.self_attn.in_proj"] == Quantization(32, 4, "mxfp4")
    assert "text_emb" not in found
    assert config_of(made)["moshi_name"] == "model.q4-mine.safetensors"
    assert load(made).dep_q == 8


def test_the_record_has_to_match_the_file(tiny_checkpoint, tmp_path):
    """Entries per layer are believed no more than the usual one."""
    made = quantize(tiny_checkpoint, tmp_path / "made", "-q", "8", "--recipe", "heads-bf16")
    config = config_of(made)
    config["quantization"]["transformer.layers.0.self_attn.in_proj"] = False
    (made / "config.json").write_text(json.dumps(config))
    with pytest.raises(MoshiError, match=r"says dense for transformer\.layers\.0\.self_attn\.in_proj"):
        load(made)


def test_shared_depth_weights_are_packed_alike(tmp_path):
    source = golden_convert.only(GOLDENS / "lm" / "wps_schedule", tmp_path, "config.json", "model.safetensors")
    (tmp_path / "r.json").write_text(
        json.dumps({"rules": [{"layers": r"depformer\.slices\.0", "bits": 8, "group_size": 32}]})
    )
    made = quantize(source, tmp_path / "made", "-q", "4", "--recipe", str(tmp_path / "r.json"))
    assert load(made)
    cfg = CheckpointConfig.from_dict(config_of(source)).lm
    shared = [k for k in range(cfg.dep_q) if cfg.depformer.weight_sets.count(cfg.depformer.weight_sets[k]) > 1]
    rule = {"layers": rf"depformer\.slices\.{shared[-1]}\.", "bits": 8, "group_size": 32}
    (tmp_path / "bad.json").write_text(json.dumps({"rules": [rule]}))
    with pytest.raises(InputError, match="are the same weights; the recipe should pack them alike"):
        main([str(source), str(tmp_path / "bad"), "-q", "4", "--recipe", str(tmp_path / "bad.json")])


# Measured ---------------------------------------------------------------------------------------------------------


def groups(*entries: tuple[str, list[float]]) -> list[mixed.Group]:
    options = [Quantization(32, 4), Quantization(64, 6), Quantization(64, 8)]
    return [mixed.Group(name, {name: (64, 64)}, options, losses) for name, losses in entries]


def test_bits_go_where_they_save_most():
    sizes = [packing.packed_bytes((64, 64), q) for q in groups(("x", [0, 0, 0]))[0].options]
    table = (("a", [1.0, 0.5, 0.1]), ("b", [10.0, 1.0, 0.9]), ("c", [0.1, 0.09, 0.0]))
    none = mixed.allocate(groups(*table), 3 * sizes[0])
    assert {q.bits for q in none.layers.values()} == {4}
    one = mixed.allocate(groups(*table), 3 * sizes[0] + (sizes[1] - sizes[0]))
    assert {p: q.bits for p, q in one.layers.items()} == {"a": 4, "b": 6, "c": 4}
    every = mixed.allocate(groups(*table), 3 * sizes[2])
    assert {q.bits for q in every.layers.values()} == {8}
    with pytest.raises(InputError, match="at the lowest precision, the budget is"):
        mixed.allocate(groups(*table), sizes[0])


def test_more_bits_that_do_not_help_are_not_spent():
    found = mixed.allocate(groups(("a", [1.0, 1.5, 2.0]), ("b", [1.0, 1.0, 0.2])), 10**9)
    assert {p: q.bits for p, q in found.layers.items()} == {"a": 4, "b": 8}


def test_mixed_measures_the_model(tiny_checkpoint, tmp_path):
    """A layer made so that rounding ruins it gets more bits than its like."""
    source = Path(shutil.copytree(tiny_checkpoint, tmp_path / "source"))
    tensors = dict(mx.load(str(source / "model.safetensors")))
    name = "transformer.layers.1.self_attn.out_proj.weight"
    x = np.array(tensors[name].astype(mx.float32))
    # One large value in every group leaves the others almost no steps.
    x[:, ::32] *= 40
    tensors[name] = mx.array(x).astype(mx.bfloat16)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)
    made = quantize(source, tmp_path / "made", "-q", "4", "--recipe", "mixed", "--budget", "5.4bpw", "--frames", "12")
    found = Loader(locate(made), dtype=mx.float32).quantizations
    assert found["transformer.layers.1.self_attn.out_proj"].bits > 4
    size = (made / config_of(made)["moshi_name"]).stat().st_size
    uniform = quantize(source, tmp_path / "uniform", "-q", "4")
    assert (
        (uniform / "model.q4.safetensors").stat().st_size
        < size
        < 1.2 * (uniform / "model.q4.safetensors").stat().st_size
    )
    assert config_of(made)["moshi_name"] == "model.q4-mixed.safetensors"


@pytest.mark.parametrize(
    ("text", "expected"), [("1GB", 10**9), ("2.5 MB", 2_500_000), ("4.5bpw", int(4.5 * 64 * 100 / 8)), ("8BPW", 6400)]
)
def test_budgets(text, expected):
    assert mixed.parse_budget(text, {"a": (64, 100)}) == expected


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "0MB", "1.2.3GB", "5 TB"])
def test_budgets_that_say_nothing(text):
    with pytest.raises(InputError, match=r"is not a size; expected for example 5\.2GB"):
        mixed.parse_budget(text, {"a": (64, 100)})


# The codec --------------------------------------------------------------------------------------------------------


def test_packed_codec(tiny_checkpoint, tmp_path, question):
    made = quantize(tiny_checkpoint, tmp_path / "made", "-q", "8", "--codec-bits", "8")
    name = config_of(made)["mimi_name"]
    assert name == "tokenizer-e351c8d8-checkpoint125.q8.safetensors"
    source, file = (
        WeightsFile(tiny_checkpoint / "tokenizer-e351c8d8-checkpoint125.safetensors"),
        WeightsFile(made / name),
    )
    assert file.nbytes < source.nbytes
    path = "encoder_transformer.transformer.layers.0.self_attn.in_proj"
    weight = source.array(f"{path}_weight")
    for ours, expected in zip(("weight", "scales", "biases"), mx.quantize(weight, 64, 8), strict=True):
        assert mx.array_equal(file.array(f"{path}.{ours}"), expected)
    kept = [n for n in source if "transformer.layers" not in n]
    for n in kept:
        assert mx.array_equal(file.array(n), source.array(n)), n
    mimi = MimiModel(MimiConfig.from_dict(json.loads((tiny_checkpoint / "mimi.json").read_text())))
    load_mimi_file(mimi, made / name)
    assert fill.quantize_like(MimiModel(mimi.cfg), file).keys() == {
        f"{side}_transformer.transformer.layers.{i}.{part}"
        for side in ("encoder", "decoder") for i in range(2)
        for part in ("self_attn.in_proj", "self_attn.out_proj", "gating.linear1", "gating.linear2")
    }  # fmt: skip
    assert run_inference.main([str(question), str(tmp_path / "r.wav"), "--model", str(made), "--greedy"]) == 0
    with pytest.raises(MoshiError, match="is a quantised codec; convert the one it was made from"):
        convert(made, tmp_path / "again")


def test_quality_of_a_packed_codec_is_that_of_its_file(tiny_checkpoint, tmp_path):
    from moshi_mlx.convert.source import Request, open_source

    source = open_source(Request(str(tiny_checkpoint))).codec
    rng = np.random.default_rng(0)
    found = {}
    for bits in (4, 8):
        made = quantize(tiny_checkpoint, tmp_path / str(bits), "-q", "8", "--codec-bits", str(bits))
        found[bits] = codec.quality(source, made / config_of(made)["mimi_name"], 0.1 * rng.standard_normal(19200), 8)
    assert found[4]["decoded_snr_db"] < found[8]["decoded_snr_db"]
    assert 0 <= found[4]["codes_equal_all"] <= found[8]["codes_equal_all"] <= 1


# Refusals ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "bits that MLX has not": (["-q", "7"], "MLX does not pack into 7 bits; -q should be 2, 3, 4, 5, 6 or 8"),
    "groups that MLX has not": (["-q", "4", "--group-size", "48"], "MLX has no groups of 48; --group-size should be 32, 64 or 128"),
    "wide groups of a float mode": (["--group-size", "128", "--mode", "mxfp4"], "--mode mxfp4 is 4 bits in groups of 32"),
    "no bits": ([], "say how many bits"),
    "bits of another mode": (["-q", "8", "--mode", "mxfp4"], "--mode mxfp4 is 4 bits in groups of 32"),
    "groups of another mode": (["--group-size", "64", "--mode", "nvfp4"], "--mode nvfp4 is 4 bits in groups of 16"),
    "unknown recipe": (["-q", "4", "--recipe", "best"], "there is no recipe 'best'; known: uniform, heads-bf16, depth-8bit, depth-dense, mixed"),
    "recipe file that is not there": (["-q", "4", "--recipe", "none.json"], "none.json does not exist"),
    "budget without mixed": (["-q", "4", "--budget", "5GB"], "--budget is the size of the recipe mixed"),
    "mixed floats": (["--mode", "mxfp4", "--recipe", "mixed"], "the recipe mixed lifts affine layers"),
    "small budget": (["-q", "4", "--recipe", "mixed", "--budget", "1bpw", "--frames", "4"], "raise --budget or lower -q"),
    "report that is no JSON": (["-q", "4", "--report", "x.txt"], "should end in .json"),
    "report nowhere": (["-q", "4", "--report", "/nowhere/x.json"], "does not exist"),
    "codes without report": (["-q", "4", "--codes", "x.npz"], "are what a --report compares on"),
    "no frames": (["-q", "4", "--frames", "0"], "--frames should be 1 to 10000"),
    "adapter scale alone": (["-q", "4", "--lora-scale", "1"], "--lora-scale is the scale of an adapter"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tiny_checkpoint, tmp_path, case):
    flags, message = REFUSED[case]
    with pytest.raises(MoshiError, match=message):
        main([str(tiny_checkpoint), str(tmp_path / "made"), *flags])
    assert not list(tmp_path.iterdir())


def test_what_is_packed_already(tiny_checkpoint, tmp_path):
    made = quantize(tiny_checkpoint, tmp_path / "made", "-q", "4")
    with pytest.raises(InputError, match="is quantised already; quantise the model it was made from"):
        main([str(made), str(tmp_path / "again"), "-q", "4"])
    with pytest.raises(InputError, match="an adapter is merged into the unquantised model"):
        convert(made, tmp_path / "again", "--lora", str(GOLDENS / "family" / "lora" / "lora.safetensors"))
    with pytest.raises(InputError, match="holds no language model to quantise"):
        main([str(GOLDENS / "mimi" / "tiny_a" / "hf"), str(tmp_path / "again"), "-q", "4"])


def test_a_packed_folder_is_converted_as_it_is_or_unpacked(tiny_checkpoint, tmp_path):
    made = quantize(tiny_checkpoint, tmp_path / "made", "-q", "8")
    same = convert(made, tmp_path / "same")
    assert_same(weights_of(same), weights_of(made))
    assert config_of(same)["quantization"] == config_of(made)["quantization"]
    plain = convert(convert(made, tmp_path / "pytorch", "--to", "pytorch"), tmp_path / "plain")
    a, b = weights_of(plain), weights_of(made)
    path = "transformer.layers.0.gating.linear_in"
    unpacked = mx.dequantize(
        b[f"{path}.weight"], *(b[f"{path}.{x}"].astype(mx.float32) for x in ("scales", "biases")), 64, 8
    )
    assert mx.array_equal(a[f"{path}.weight"], unpacked.astype(mx.bfloat16))


@pytest.mark.parametrize(
    "rules",
    [
        {}, {"rules": {}}, {"rules": [3]}, {"rules": [{"bits": 4}]}, {"rules": [{"layers": "("}]}, {"rules": [{"layers": "x", "bits": 7}]},
        {"rules": [{"layers": "x", "group_size": 64}]}, {"rules": [{"layers": "x", "mode": "int3"}]},
        {"rules": [{"layers": "x", "dense": 1}]}, {"rules": [{"layers": "x", "colour": 1}]},
    ],
)  # fmt: skip
def test_recipes_that_say_nothing(tmp_path, rules):
    (tmp_path / "r.json").write_text(json.dumps(rules))
    with pytest.raises(MoshiError, match=r"r\.json"):
        recipe_files.read_recipe(str(tmp_path / "r.json"))


def test_a_failed_run_leaves_nothing(tiny_copy, tmp_path):
    tensors = dict(mx.load(str(tiny_copy / "model.safetensors")))
    tensors["text_linear.weight"] = tensors["text_linear.weight"] * mx.nan
    mx.save_safetensors(str(tiny_copy / "model.safetensors"), tensors)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(MoshiError, match=r"NaN or infinite values in text_linear\.weight"):
        main([str(tiny_copy), str(tmp_path / "made"), "-q", "4"])
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "flags", [["-q", "4"], ["--mode", "mxfp4"], ["--mode", "mxfp8"], ["--mode", "nvfp4"]], ids="".join
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_number_that_is_none(tiny_copy, tmp_path, flags, value):
    """Packed integers and scales do not show it: it has to be seen before."""
    tensors = dict(mx.load(str(tiny_copy / "model.safetensors")))
    tensors["text_linear.weight"][3, 5] = value
    mx.save_safetensors(str(tiny_copy / "model.safetensors"), tensors)
    with pytest.raises(MoshiError, match=r"NaN or infinite values in text_linear\.weight"):
        main([str(tiny_copy), str(tmp_path / "made"), *flags])
    assert not (tmp_path / "made").exists()


def test_packings_are_recorded_the_way_mlx_lm_does():
    from moshi_mlx.convert.config_file import recorded

    four, eight = Quantization(32, 4), Quantization(64, 8)
    packing = Packing({"a": four, "b": four, "c": eight}, ["d"])
    assert recorded(packing.layers, packing.dense) == {
        "group_size": 32, "bits": 4, "mode": "affine", "c": {"group_size": 64, "bits": 8, "mode": "affine"}, "d": False,
    }  # fmt: skip
