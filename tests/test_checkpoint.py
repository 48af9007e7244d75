"""Loading: layouts, precision told by the file, and one clear sentence for everything that can be wrong."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from toy import LM, make_lm

from moshi_mlx import checkpoint
from moshi_mlx.checkpoint import Loader, hub, load_lm_file
from moshi_mlx.checkpoint.files import Files, Overrides, locate
from moshi_mlx.checkpoint.weights_file import WeightsFile, read_header
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.config.presets import MIMI_NAME, MOSHI_NAME, TOKENIZER_NAME
from moshi_mlx.errors import CheckpointError, ConfigError, InputError, MoshiError
from moshi_mlx.machine import device, memory
from moshi_mlx.models import Lm, LmConfig
from moshi_mlx.text import Detokenizer

SHAPES = {**LM, "hidden_scale": 4.5, "dim": 64, "depformer_dim": 64, "depformer_dim_feedforward": 288, "num_heads": 4}


def save_lm(lm: Lm, path) -> None:
    mx.save_safetensors(str(path), dict(tree_flatten(lm.parameters())))


def empty(config=SHAPES) -> Lm:
    return Lm(CheckpointConfig.from_dict(config).lm)


def change(path, edit) -> None:
    """Rewrite a safetensors file with some tensors changed."""
    tensors = dict(mx.load(str(path)))
    edit(tensors)
    mx.save_safetensors(str(path), tensors)


def load(folder, **options):
    return Loader(locate(folder), **options).load()


# Precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bits", "group", "mode"), [(2, 32, "affine"), (3, 64, "affine"), (4, 32, "affine"), (5, 32, "affine"), (6, 64, "affine"), (8, 64, "affine"), (4, 32, "mxfp4"), (8, 32, "mxfp8"), (4, 16, "nvfp4")]
)  # fmt: skip
def test_packing_is_told_by_the_file(tmp_path, bits, group, mode):
    lm = make_lm(**{k: v for k, v in SHAPES.items() if k not in LM or LM[k] != v})
    nn.quantize(lm, group_size=group, bits=bits, mode=mode)
    save_lm(lm, tmp_path / "m.safetensors")
    loaded = empty()
    load_lm_file(loaded, tmp_path / "m.safetensors", dtype=mx.float32)
    lm.set_compute_dtype(mx.float32)
    tokens = mx.zeros((1, 7), mx.int32)
    state = lm.transformer.init_state(1, 12, mx.float32)
    a, _ = lm.trunk(lm.embed(tokens), state)
    b, _ = loaded.trunk(loaded.embed(tokens), state)
    np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5)
    assert {q.mode for q in packings(tmp_path / "m.safetensors")} == {mode}


def packings(path):
    from moshi_mlx.checkpoint import fill

    return fill.quantize_like(empty(), WeightsFile(path)).values()


def test_mixed_precision_and_minus_one_after_quantising(tmp_path):
    """Layers may be packed differently; token -1 embeds as zero in every precision."""
    lm = make_lm(**{k: v for k, v in SHAPES.items() if k not in LM or LM[k] != v})
    nn.quantize(
        lm,
        class_predicate=lambda p, m: (
            hasattr(m, "to_quantized")
            and ({"group_size": 32, "bits": 8} if "text" in p else {"group_size": 64, "bits": 4})
        ),
    )
    save_lm(lm, tmp_path / "m.safetensors")
    loaded = empty()
    load_lm_file(loaded, tmp_path / "m.safetensors", dtype=mx.float32)
    assert loaded.text_linear.bits == 8
    assert loaded.transformer.layers[0].self_attn.in_proj.bits == 4
    assert (np.array(loaded.audio_embs[0](mx.array([-1]))) == 0).all()
    assert (np.array(loaded.embed(mx.full((1, 7), -1))) == 0).all()


def test_dtype_of_weights_and_activations(tmp_path):
    lm = make_lm()
    lm.set_dtype(mx.bfloat16)
    save_lm(lm, tmp_path / "m.safetensors")
    for dtype in (mx.float32, mx.bfloat16, mx.float16):
        loaded = empty(LM)
        load_lm_file(loaded, tmp_path / "m.safetensors", dtype=dtype)
        assert loaded.dtype == dtype
        assert loaded.embed(mx.zeros((1, 7), mx.int32)).dtype == dtype
    as_stored = empty(LM)
    load_lm_file(as_stored, tmp_path / "m.safetensors")
    assert as_stored.dtype == mx.bfloat16


def test_published_loading_scripts_work(tmp_path):
    """set_dtype, quantise like the file name says, load strictly; or load PyTorch weights and quantise parts of it."""
    lm = make_lm(**{k: v for k, v in SHAPES.items() if k not in LM or LM[k] != v})
    nn.quantize(lm, bits=4, group_size=32)
    save_lm(lm, tmp_path / "model.q4.safetensors")
    model = Lm(LmConfig.from_config_dict(SHAPES))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, bits=4, group_size=32)
    model.load_weights(str(tmp_path / "model.q4.safetensors"), strict=True)
    nn.quantize(model.depformer, bits=8)
    for layer in model.transformer.layers:
        nn.quantize(layer.self_attn, bits=8)
        nn.quantize(layer.gating, bits=8)
    model.warmup()


def test_shared_depth_sets_are_kept_once(tmp_path):
    config = {**LM, "dep_q": 6, "n_q": 6, "delays": [0] * 7, "depformer_weights_per_step_schedule": [0, 1, 2, 2, 2, 2]}
    lm = empty(config)
    from toy import randomise

    randomise(lm, 1)
    save_lm(lm, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="slice 3 should repeat the weights of slice 2"):
        load_lm_file(empty(config), tmp_path / "m.safetensors")
    for k in (3, 4, 5):
        lm.depformer.slices[k].transformer.update(lm.depformer.slices[2].transformer.parameters())
        lm.depformer.slices[k].linear_in.update(lm.depformer.slices[2].linear_in.parameters())
    save_lm(lm, tmp_path / "m.safetensors")
    loaded = empty(config)
    load_lm_file(loaded, tmp_path / "m.safetensors")
    one, two = loaded.depformer.slices[2].transformer, loaded.depformer.slices[5].transformer
    assert one.layers[0].gating.linear_in.weight is two.layers[0].gating.linear_in.weight


def test_shards(tiny_copy):
    tensors = dict(mx.load(str(tiny_copy / "model.safetensors")))
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:100], "model-2.safetensors": names[100:]}
    for file, members in parts.items():
        mx.save_safetensors(str(tiny_copy / file), {n: tensors[n] for n in members})
    index = {"weight_map": {n: file for file, members in parts.items() for n in members}}
    (tiny_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    (tiny_copy / "model.safetensors").unlink()
    config = json.loads((tiny_copy / "config.json").read_text())
    (tiny_copy / "config.json").write_text(json.dumps({**config, "moshi_name": "model.safetensors.index.json"}))
    assert load(tiny_copy).lm.dep_q == 8
    index["weight_map"][names[0]] = "../elsewhere.safetensors"
    (tiny_copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="outside its folder"):
        load(tiny_copy)


# What can be wrong ----------------------------------------------------------------------------------------------


def truncate(path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def rewrite_config(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def nan_at(name):
    def edit(tensors):
        x = np.array(tensors[name].astype(mx.float32))
        x.reshape(-1)[-1] = np.nan
        tensors[name] = mx.array(x).astype(tensors[name].dtype)

    return edit


def swap_models(folder) -> None:
    a, b = folder / MOSHI_NAME, folder / MIMI_NAME
    text = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(text)


def pickle_instead(folder) -> None:
    (folder / MOSHI_NAME).write_bytes(pickle.dumps({"weight": [1, 2, 3]}))


def zip_instead(folder) -> None:
    with zipfile.ZipFile(folder / MOSHI_NAME, "w") as z:
        z.writestr("archive/data.pkl", b"x")


BROKEN = {
    "no weights": (lambda d: (d / MOSHI_NAME).unlink(), "lacks the file 'model.safetensors'"),
    "no codec": (lambda d: (d / MIMI_NAME).unlink(), "lacks the codec"),
    "cut short": (lambda d: truncate(d / MOSHI_NAME, 0.5), "cut short.*Download it again"),
    "header cut": (lambda d: (d / MOSHI_NAME).write_bytes((d / MOSHI_NAME).read_bytes()[:50]), "cut short"),
    "empty": (lambda d: (d / MOSHI_NAME).write_bytes(b""), "is empty"),
    "extra bytes": (lambda d: (d / MOSHI_NAME).open("ab").write(b"junk"), "followed by unknown data"),
    "garbage": (lambda d: (d / MOSHI_NAME).write_bytes(bytes(range(256)) * 10), "safetensors"),
    "lfs pointer": (lambda d: (d / MOSHI_NAME).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "LFS pointer"),
    "pickle": (pickle_instead, "pickle.*never loaded"),
    "zipped pickle": (zip_instead, "pickle.*never loaded"),
    "gguf": (lambda d: (d / MOSHI_NAME).write_bytes(b"GGUF" + bytes(100)), "GGUF.*moshi_mlx.convert"),
    "swapped": (swap_models, "(lacks|no place for)"),
    "missing tensor": (lambda d: change(d / MOSHI_NAME, lambda t: t.pop("out_norm.weight")), "lacks 1 tensor.*out_norm.weight"),
    "surplus tensor": (lambda d: change(d / MOSHI_NAME, lambda t: t.update(other=mx.zeros(3))), "no place for: other"),
    "wrong shape": (lambda d: change(d / MOSHI_NAME, lambda t: t.update({"text_linear.weight": mx.zeros((7, 128))})), r"text_linear.weight should have the shape \[200, 128\].*\[7, 128\]"),
    "integers": (lambda d: change(d / MOSHI_NAME, lambda t: t.update({"text_linear.weight": mx.zeros((200, 128), mx.int32)})), "floating-point values, found I32"),
    "nan": (lambda d: change(d / MOSHI_NAME, nan_at("audio_embs.3.weight")), "NaN.*audio_embs.3.weight"),
    "nan in codec": (lambda d: change(d / MIMI_NAME, nan_at("decoder.model.0.conv.conv.weight")), "NaN"),
    "config without layers": (lambda d: rewrite_config(d, num_layers="absent"), "lacks the required key 'num_layers'"),
    "config of impossible sizes": (lambda d: rewrite_config(d, hidden_scale=1e9), "'hidden_scale' makes MLPs \\d+ wide"),
    "config with another width": (lambda d: rewrite_config(d, dim=256), "should have the shape"),
    "config with more layers": (lambda d: rewrite_config(d, num_layers=3), "lacks .* tensors"),
    "config with fewer codebooks": (lambda d: rewrite_config(d, n_q=15, delays=[0] + [0] * 15), "no place for"),
    "tokenizer of another size": (lambda d: rewrite_config(d, text_card=199), "(200 pieces|should have the shape)"),
    "not a tokenizer": (lambda d: (d / TOKENIZER_NAME).write_bytes(b"hello"), "not a sentencepiece model"),
    "codec of another size": (lambda d: (d / "mimi.json").write_text((d / "mimi.json").read_text().replace('"bins": 256', '"bins": 512')), "'card' is 256, the codec's 'bins' are 512"),
    "codec with too few levels": (lambda d: (d / "mimi.json").write_text((d / "mimi.json").read_text().replace('"n_q": 8', '"n_q": 4')), "codec has 4"),
    "quantisation that is not there": (lambda d: rewrite_config(d, quantization={"bits": 4, "group_size": 32}), "says 4 bits, but .* is not quantised"),
    "path outside": (lambda d: rewrite_config(d, tokenizer_name="../../etc/passwd"), "outside the checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_checkpoints(tiny_copy, case):
    damage, message = BROKEN[case]
    damage(tiny_copy)
    with pytest.raises(MoshiError, match=message):
        load(tiny_copy)


def test_tokenizer_of_another_size(tiny_copy):
    from random_checkpoint import write_tokenizer

    write_tokenizer(tiny_copy / TOKENIZER_NAME, 250)
    with pytest.raises(CheckpointError, match="250 pieces.*'text_card' is 200"):
        load(tiny_copy)
    # A table that was padded has more rows than the tokenizer pieces.
    write_tokenizer(tiny_copy / TOKENIZER_NAME, 150)
    loaded = load(tiny_copy)
    assert any("150 pieces, the model 200 text tokens; the last 50 stand for nothing" in note for note in loaded.notes)
    assert Detokenizer(loaded.tokenizer, loaded.lm.cfg).feed(199) == ""


def test_a_flag_that_contradicts_the_file_is_refused(tmp_path):
    from random_checkpoint import write

    write(tmp_path, "tiny", 8, seed=1)
    with pytest.raises(InputError, match="-q 4 was given, but .* is packed already, in 8 bit. Leave out -q"):
        load(tmp_path, quantized=4)


def test_config_that_contradicts_the_packing_is_refused(tmp_path):
    from random_checkpoint import write

    write(tmp_path, "tiny", 8, seed=1)
    assert load(tmp_path, quantized=8).precision == "affine 8 bit, group 64"
    rewrite_config(tmp_path, quantization={"bits": 4, "group_size": 32})
    with pytest.raises(ConfigError, match="says .*'bits': 4.* for .*, but the weights are affine 8 bit"):
        load(tmp_path)
    said = {"bits": 8, "group_size": 64}
    # Older records do not say how numbers are packed.
    for right in (said, {**said, "mode": "affine"}, {**said, "not.there": {"bits": 4}}):
        rewrite_config(tmp_path, quantization=right)
        assert load(tmp_path).precision == "affine 8 bit, group 64"
    own = {**said, "mode": "mxfp8"}
    for wrong in (*({**said, "mode": mode} for mode in ("mxfp8", "mxfp4", "garbage", None)), {**said, "text_emb": own}):
        rewrite_config(tmp_path, quantization=wrong)
        with pytest.raises(ConfigError, match="'mode': .*, but the weights are affine 8 bit"):
            load(tmp_path)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_floats_that_are_recorded_as_integers_are_refused(tiny_checkpoint, tmp_path, mode):
    from moshi_mlx.quantize.__main__ import main

    assert main([str(tiny_checkpoint), str(tmp_path / "made"), "--mode", mode]) == 0
    said = json.loads((tmp_path / "made" / "config.json").read_text())["quantization"]
    assert said.pop("mode") == mode
    rewrite_config(tmp_path / "made", quantization=said)
    with pytest.raises(ConfigError, match=f"'quantization' says .*, but the weights are {mode}"):
        load(tmp_path / "made")


def test_a_dense_layer_that_is_recorded_as_packed_is_refused(tiny_checkpoint, tmp_path):
    from moshi_mlx.quantize.__main__ import main

    assert main([str(tiny_checkpoint), str(tmp_path / "made"), "-q", "8", "--recipe", "heads-bf16"]) == 0
    said = json.loads((tmp_path / "made" / "config.json").read_text())["quantization"]
    assert said["text_linear"] is False
    rewrite_config(tmp_path / "made", quantization={**said, "text_linear": {"group_size": 64, "bits": 8}})
    with pytest.raises(ConfigError, match="'bits': 8.* for text_linear, but the weights are dense"):
        load(tmp_path / "made")


def test_folder_without_config_is_moshi_7b(tmp_path):
    (tmp_path / "model.q4.safetensors").write_bytes(b"x" * 20)
    files = locate(tmp_path)
    assert files.moshi.name == "model.q4.safetensors"
    assert files.config.lm.transformer.d_model == 4096
    with pytest.raises(CheckpointError, match=r"expected model\.q8"):
        locate(tmp_path, quantized=8)
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="is a file"):
        locate(tmp_path / "model.q4.safetensors")
    with pytest.raises(InputError, match="not both"):
        locate(tmp_path, "kyutai/moshiko-mlx-q4")


def test_single_files_replace_those_of_a_folder(tiny_copy, tmp_path):
    other = tmp_path / "other.safetensors"
    (tiny_copy / "model.safetensors").rename(other)
    with pytest.raises(CheckpointError, match="lacks the file"):
        locate(tiny_copy)
    files = locate(tiny_copy, overrides=Overrides(moshi=str(other)))
    assert Loader(files).load().lm.n_q == 16
    with pytest.raises(CheckpointError, match="does not exist"):
        locate(tiny_copy, overrides=Overrides(moshi="missing.safetensors"))


def test_only_the_files_of_a_config_are_needed(tiny_copy):
    """As published scripts do: --lm-config with --moshi-weights, no repository."""
    overrides = Overrides(moshi=str(tiny_copy / "model.safetensors"), config=str(tiny_copy / "config.json"))
    assert Loader(locate(overrides=overrides)).load().mimi is not None


def test_memory_is_checked_before_reading(tiny_copy, monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    monkeypatch.setattr(memory, "total_bytes", lambda: 1000)
    with pytest.raises(CheckpointError, match="needs .* of memory, .* available"):
        load(tiny_copy)


def test_estimate_is_close(tiny_copy):
    loader = Loader(locate(tiny_copy), dtype=mx.bfloat16)
    loaded = loader.load()
    assert loader.estimate().weights == pytest.approx(memory.module_bytes(loaded.lm), rel=0.02)


def test_macos_memory_is_read_from_vm_stat():
    text = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\nPages free: 1000.\nPages active: 5.\nPages inactive: 500.\nPages speculative: 10.\n"
    assert memory._vm_stat(text) == 16384 * 1510


def test_files_that_a_container_has_cached_take_no_memory(monkeypatch):
    """As after a download of weights: all of the limit is used, most of it by the file."""
    files = {
        "memory.max": "16000\n",
        "memory.current": "15900\n",
        "memory.stat": "anon 900\nfile 15000\ninactive_file 6000\nactive_file 9000\n",
    }
    monkeypatch.setattr(memory, "_read", lambda path: files.get(path.rpartition("/")[2], ""))
    assert memory._container_available() == [15100]
    del files["memory.stat"]
    assert memory._container_available() == [100]
    files["memory.max"] = "max\n"
    assert memory._container_available() == []


# The Hub ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "no repository 'a/b'"),
        ("GatedRepoError", "accept its licence"),
        ("EntryNotFoundError", "has no file 'x'"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("HFValidationError", "not the name of a repository"),
    ],
)
def test_hub_errors(monkeypatch, error, message):
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*_, **__):
        cls = getattr(errors, error)
        raise cls.__new__(cls)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(CheckpointError, match=message):
        hub.download("a/b", "x")


def test_default_repository_follows_the_bits(monkeypatch):
    asked = []

    def record(repo, name, optional=False):
        asked.append(repo)
        raise CheckpointError("stop")

    monkeypatch.setattr(hub, "download", record)
    for bits, repo in ((None, "kyutai/moshiko-mlx-bf16"), (4, "kyutai/moshiko-mlx-q4"), (8, "kyutai/moshiko-mlx-q8")):
        with pytest.raises(CheckpointError):
            locate(quantized=bits)
        assert asked[-1] == repo


def test_hub_folder_is_loaded_like_a_local_one(tiny_copy, monkeypatch):
    monkeypatch.setattr(
        hub, "download", lambda repo, name, optional=False: tiny_copy / name if (tiny_copy / name).exists() else None
    )
    files = locate(hf_repo="someone/tiny")
    assert isinstance(files, Files)
    assert files.source == "someone/tiny"
    assert Loader(files).load().tokenizer is not None


def test_hub_names():
    assert hub.split_hub_name("hf://kyutai/tts-voices/a/b.wav") == ("kyutai/tts-voices", "a/b.wav")
    with pytest.raises(CheckpointError, match="should be hf://"):
        hub.split_hub_name("hf://kyutai")


# Headers ----------------------------------------------------------------------------------------------------------


def header_file(path, header: dict, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "should take 8 bytes"),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "shape"),
        ({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, "unknown type 'X9'"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "does not follow"),
        ({"a": 3}, "damaged"),
    ],
)
def test_damaged_headers(tmp_path, header, message):
    header_file(tmp_path / "x.safetensors", header, bytes(8))
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["half of a character \ud800", "__metadata__"])
def test_headers_that_only_mlx_refuses(tmp_path, name):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    other = {name: {"made by": "\udc00"}} if name == "__metadata__" else {name: {**entry, "data_offsets": [8, 16]}}
    header_file(tmp_path / "x.safetensors", {"a": entry, **other}, bytes(8 if name == "__metadata__" else 16))
    with pytest.raises(CheckpointError, match="x.safetensors cannot be read: .*parse error") as told:
        WeightsFile(tmp_path / "x.safetensors").array("a")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["model.safetensors", MIMI_NAME])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
def test_a_download_that_stopped(tiny_copy, name, share):
    """Given its whole size at once and filled from the start, as some programs download: the header is right."""
    file = tiny_copy / name
    data = file.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    there = header + int(share * (len(data) - header))
    file.write_bytes(data[:there] + bytes(len(data) - there))
    with pytest.raises(CheckpointError, match=rf"{name} holds nothing but zeros in .*norm.*not downloaded whole"):
        load(tiny_copy)


def test_no_tensors(tmp_path):
    header_file(tmp_path / "x.safetensors", {})
    with pytest.raises(CheckpointError, match="holds no tensors"):
        WeightsFile(tmp_path / "x.safetensors")


def test_load_in_one_call(tiny_checkpoint):
    loaded = checkpoint.load(tiny_checkpoint, context=50)
    assert loaded.lm.cfg.transformer.context == 50
    assert loaded.precision == ("bfloat16" if device.on_gpu() else "float32")
