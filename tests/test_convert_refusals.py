"""Broken and malicious input: one clear sentence, nothing executed, nothing left behind."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch_files
from moshi_mlx.convert import formats
from moshi_mlx.convert.__main__ import main

from moshi_mlx.checkpoint import hub
from moshi_mlx.errors import CheckpointError, MoshiError, OutputError

GOLDENS = Path(__file__).parent / "goldens"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path) -> Path:
    return Path(shutil.copytree(GOLDENS / "convert" / "pytorch_shards" / "source", tmp_path / "source"))


def refused(source: Path, tmp: Path, message: str, *flags: str) -> None:
    """The conversion fails with one sentence and leaves nothing."""
    before = sorted(p.name for p in tmp.iterdir())
    with pytest.raises(MoshiError, match=message) as caught:
        main([str(source), str(tmp / "made"), *flags])
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp.iterdir()) == before


def change(path: Path, edit) -> None:
    tensors = dict(mx.load(str(path)))
    edit(tensors)
    mx.save_safetensors(str(path), tensors)


def edit_index(source: Path, edit) -> None:
    index = json.loads((source / INDEX).read_text())
    edit(index["weight_map"])
    (source / INDEX).write_text(json.dumps(index))


def first_name(source: Path) -> str:
    return sorted(mx.load(str(source / FIRST)))[0]


def one_file(source: Path, edit=lambda tensors: None) -> None:
    """The shards as one file, with some tensors changed."""
    tensors = {**mx.load(str(source / FIRST)), **mx.load(str(source / SECOND))}
    for name in (FIRST, SECOND, INDEX):
        (source / name).unlink()
    edit(tensors)
    mx.save_safetensors(str(source / "model.safetensors"), tensors)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def twice_in_one_header(source: Path) -> None:
    one_file(source)
    raw = (source / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = raw[8 : 8 + length].rstrip()
    entry = json.dumps({"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]})
    header = header[:-1] + f',"out_norm.alpha":{entry}}}'.encode()
    (source / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def twice_in_two_shards(source: Path) -> None:
    name = first_name(source)
    change(source / SECOND, lambda t: t.update({name: mx.zeros(3)}))
    edit_index(source, lambda m: m.update({name: SECOND}))


def not_a_number(value: float):
    def edit(tensors):
        x = np.array(tensors["text_linear.weight"].astype(mx.float32))
        x[-1, -1] = value
        tensors["text_linear.weight"] = mx.array(x).astype(mx.bfloat16)

    return lambda source: one_file(source, edit)


def eight_bit_floats(source: Path) -> None:
    one_file(source)
    raw = (source / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    entry = header["text_linear.weight"]
    entry["dtype"], entry["shape"] = "F8_E4M3", [entry["shape"][0], 2 * entry["shape"][1]]
    text = json.dumps(header).encode()
    (source / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def link_outside(name: str):
    def damage(source: Path) -> None:
        (source / name).rename(source.parent.parent / "outside")
        (source / name).symlink_to(source.parent.parent / "outside")

    return damage


def rewrite_config(**changes):
    def damage(source: Path) -> None:
        config = {**json.loads((source / "config.json").read_text()), **changes}
        (source / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))

    return damage


BROKEN = {
    "cut shard": (lambda s: truncate(s / FIRST), "cut short"),
    "missing shard": (lambda s: (s / SECOND).unlink(), f"{SECOND} does not exist"),
    "empty shard": (lambda s: (s / FIRST).write_bytes(b""), "is empty"),
    "LFS pointer": (lambda s: (s / FIRST).write_text("version https://git-lfs.github.com/spec/v1\n"), "LFS pointer"),
    "index outside the folder": (lambda s: edit_index(s, lambda m: m.update({first_name(s): "../other.safetensors"})), "outside its folder"),
    "index with an absolute name": (lambda s: edit_index(s, lambda m: m.update({first_name(s): "/etc/passwd"})), "outside its folder"),
    "index that lies": (lambda s: edit_index(s, lambda m: m.update({first_name(s): SECOND})), "says .* is in .*00002.*, but it is in"),
    "index without files": (lambda s: (s / INDEX).write_text('{"weight_map": {}}'), "not an index"),
    "broken index": (lambda s: (s / INDEX).write_text("{"), "not valid JSON"),
    "name in two shards": (twice_in_two_shards, "stored twice"),
    "name twice in a header": (twice_in_one_header, "'out_norm.alpha' is there twice"),
    "missing tensor": (lambda s: one_file(s, lambda t: t.pop("out_norm.alpha")), "lacks 1 tensor .*out_norm.alpha"),
    "surplus tensor": (lambda s: one_file(s, lambda t: t.update(more=mx.zeros(2))), "no place for: more"),
    "wrong shape": (lambda s: one_file(s, lambda t: t.update({"text_linear.weight": mx.zeros((60, 32), mx.bfloat16)})), r"should have the shape \[60, 64\].*found \[60, 32\]"),
    "turned matrix": (lambda s: one_file(s, lambda t: t.update({"text_linear.weight": t["text_linear.weight"].T})), r"should have the shape \[60, 64\]"),
    "integers": (lambda s: one_file(s, lambda t: t.update({"text_linear.weight": mx.zeros((60, 64), mx.int32)})), "floating-point values, found I32"),
    "8 bit floats": (eight_bit_floats, "(found F8_E4M3|should have the shape)"),
    "NaN": (not_a_number(np.nan), "NaN or infinite values in text_linear.weight"),
    "infinity": (not_a_number(np.inf), "NaN or infinite values in text_linear.weight"),
    "unknown names": (lambda s: one_file(s, lambda t: [t.update({n + ".x": t.pop(n)}) for n in list(t)]), "is of no known format"),
    "shard is a link outside": (link_outside(FIRST), "symbolic link to .*outside, outside its folder"),
    "config is a link outside": (link_outside("config.json"), "symbolic link to"),
    "no layers in the config": (rewrite_config(num_layers=None), "lacks the required key 'num_layers'"),
    "config of another width": (rewrite_config(dim=128), "should have the shape"),
    "config of another model": (rewrite_config(dim=None, model_type="helium", hidden_size=64), "one of transformers .helium., but"),
    "config is no object": (lambda s: (s / "config.json").write_text("[1]"), "should hold a JSON object"),
    "codec name outside": (rewrite_config(mimi_name="../../x"), "outside the checkpoint"),
    "tokenizer of another size": (lambda s: shutil.copy(GOLDENS / "family" / "tokenizer" / "tiny_bpe_400.model", s / "t.model"), "400 pieces.*'text_card' is 60"),
    "a tokenizer with a piece of no text": (lambda s: (s / "t.model").write_bytes((GOLDENS / "family" / "tokenizer" / "tiny_bpe_400.model").read_bytes().replace(b"\xe2\x96\x81t", b"\xe2\x96\xfft", 1)), "is damaged: its piece b.* is not UTF-8"),
    "not a tokenizer": (lambda s: (s / "t.model").write_bytes(b"hello"), "not a sentencepiece model"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_sources(source, tmp_path, case):
    damage, message = BROKEN[case]
    # One level further down, so that links have somewhere outside to point at.
    inner = tmp_path / "inner"
    inner.mkdir()
    moved = Path(shutil.move(source, inner / "source"))
    damage(moved)
    refused(moved, inner, message)


# Files of torch.save ----------------------------------------------------------------------------------------------


def with_weights(source: Path, name: str, raw: bytes) -> Path:
    for old in (FIRST, SECOND, INDEX):
        (source / old).unlink()
    (source / name).write_bytes(raw)
    return source


def code(marker: Path, call: str = "posix\nsystem") -> bytes:
    text = f"touch {marker}".encode()
    return b"c" + call.encode() + b"\n(X" + len(text).to_bytes(4, "little") + text + b"tR"


@pytest.mark.parametrize("call", ["posix\nsystem", "builtins\neval", "torch\nload", "os\nremove"])
def test_pickles_with_code_are_refused_and_not_run(source, tmp_path, call):
    marker = tmp_path / "ran"
    zipped = torch_files.write_archive(tmp_path / "a.pt", torch_files.dictionary({"x": code(marker, call)}), {})
    with_weights(source, "model.pt", zipped.read_bytes())
    name = call.replace("\n", ".").replace("posix", "(posix|os)")
    refused(source, tmp_path, f"holds {name}, not only tensors; it is not loaded")
    # The old form, and a bare pickle.
    old = (
        b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00."
        + b"\x80\x02"
        + code(marker, call)
        + b"."
    )
    (source / "model.pt").write_bytes(old)
    refused(source, tmp_path, "(is damaged|not only tensors)")
    (source / "model.pt").write_bytes(b"\x80\x02" + code(marker, call) + b".")
    refused(source, tmp_path, f"holds {name}, not only tensors")
    assert not marker.exists()


def test_damaged_files_of_torch(source, tmp_path):
    whole = (GOLDENS / "convert" / "pytorch_th" / "source" / "model.th").read_bytes()
    with_weights(source, "model.pt", whole[: len(whole) // 2])
    refused(source, tmp_path, "(is damaged|damaged archive)")
    old = (GOLDENS / "convert" / "pytorch_old_pt" / "source" / "model.pt").read_bytes()
    for size in (len(old) - 500, 5000, 40):
        (source / "model.pt").write_bytes(old[:size])
        refused(source, tmp_path, "is damaged")
    empty = torch_files.write_archive(tmp_path / "a.pt", torch_files.dictionary({"epoch": b"K\x03"}), {})
    (source / "model.pt").write_bytes(empty.read_bytes())
    refused(source, tmp_path, "a dictionary of epoch and no state dict")


def test_lists_of_lists_are_looked_at_once(source, tmp_path):
    """Sixty lists, each holding the one before twice, are few bytes and more paths than any machine can walk."""
    nested = b"]q\x00" + b"".join(
        b"]q" + bytes([i]) + b"(h" + bytes([i - 1]) + b"h" + bytes([i - 1]) + b"e" for i in range(1, 61)
    )
    head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."
    system = b"\x80\x02}(X\x0d\x00\x00\x00little_endian\x88u."
    with_weights(source, "model.pt", head + system + b"\x80\x02" + nested + b"." + b"\x80\x02].")
    refused(source, tmp_path, "holds list and no state dict")


def test_a_compressed_archive_is_refused(source, tmp_path):
    import zipfile

    data = torch_files.dictionary({"x": torch_files.tensor("FloatStorage", "0", 1000, (1000,))})
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", bytes(4000))
    with pytest.raises(CheckpointError, match="storage 0 has 4000 bytes, 4000 are announced|compressed"):
        formats.open_weights(tmp_path / "bomb.pt")


# GGUF -------------------------------------------------------------------------------------------------------------


def gguf(tensors: bytes, count: int = 1, entries: bytes = b"", entry_count: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, entry_count) + entries + tensors


def described(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    raw = name.encode()
    return (
        struct.pack("<Q", len(raw))
        + raw
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)
    )


GGUF = {
    "cut header": (gguf(b"", 5), "damaged GGUF header .it is cut short"),
    "too many": (gguf(b"", 1 << 40), "announces"),
    "old version": (gguf(b"", 1, version=1), "GGUF version 1"),
    "beyond the end": (gguf(described("x", (32, 2), 0, 0)) + bytes(40), "cut short: x ends at byte"),
    "far beyond the end": (gguf(described("x", (1 << 40, 1 << 20), 0, 1 << 60)), "cut short: x"),
    "twice": (gguf(described("x", (1,), 0, 0) * 2, 2) + bytes(99), "holds x twice"),
    "long name": (gguf(struct.pack("<Q", 1 << 50)), "a text of"),
    "dimensions": (gguf(described("x", (1,) * 9, 0, 0)), "9 dimensions"),
    "uneven blocks": (gguf(described("x", (33, 2), 8, 0)) + bytes(999), "blocks of 32"),
    "unknown type": (gguf(described("x", (32, 2), 77, 0)) + bytes(999), "(unknown type 77|pip install gguf)"),
    "unknown value": (gguf(b"", 0, struct.pack("<Q", 1) + b"k" + struct.pack("<I", 99), 1), "unknown type 99"),
    "list of lists": (gguf(b"", 0, struct.pack("<Q", 1) + b"k" + struct.pack("<IIQIQ", 9, 9, 1, 9, 1), 1), "unknown type 9"),
}  # fmt: skip


@pytest.mark.parametrize("case", GGUF)
def test_damaged_gguf(source, tmp_path, case):
    raw, message = GGUF[case]
    with_weights(source, "model.gguf", raw)
    refused(source, tmp_path, message)


def test_the_real_gguf_cut_short(tmp_path):
    source = Path(shutil.copytree(GOLDENS / "convert" / "gguf" / "source", tmp_path / "source"))
    truncate(source / "model.q8.gguf")
    refused(source, tmp_path, "cut short")


# Other sources ----------------------------------------------------------------------------------------------------


def test_what_is_no_model(source, tmp_path):
    adapter = GOLDENS / "family" / "lora" / "lora.safetensors"
    refused(adapter, tmp_path, r"is a LoRA adapter.*moshi_mlx\.convert BASE DST --lora")
    refused(tmp_path / "nothing" / "x", tmp_path, "does not exist")
    refused(Path("nothing"), tmp_path, "(neither a folder|no repository)")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, "holds no weights of a known format")
    mx.save_safetensors(str(tmp_path / "odd.safetensors"), {"a": mx.zeros(3)})
    refused(tmp_path / "odd.safetensors", tmp_path, "is of no known format: its tensors are called 'a'")


def test_flags_that_say_nothing(source, tmp_path):
    refused(source, tmp_path, "--keep-user-codebooks is for PersonaPlex", "--keep-user-codebooks")
    refused(source, tmp_path, "--lora-scale is the scale of an adapter", "--lora-scale", "2")
    refused(source, tmp_path, "x.model does not exist", "--tokenizer", str(tmp_path / "x.model"))
    refused(source, tmp_path, "is not a codec", "--mimi-weights", str(source / FIRST))


def test_adapters_that_do_not_fit(source, tmp_path):
    other = GOLDENS / "family" / "lora" / "lora.safetensors"
    refused(source, tmp_path, "(belongs to another model|has no place for)", "--lora", str(other))
    refused(source, tmp_path, "is not a LoRA adapter", "--lora", str(source / FIRST))
    refused(source, tmp_path, "does not exist", "--lora", str(tmp_path / "none.safetensors"))


def test_int8_without_its_scales(tmp_path):
    source = Path(shutil.copytree(GOLDENS / "convert" / "int8" / "source", tmp_path / "source"))
    file = source / "model.q8.safetensors"
    change(file, lambda t: t.pop("text_linear.weight_scb"))
    refused(source, tmp_path, "text_linear.weight should hold floating-point values, found I8")
    change(file, lambda t: t.update({"text_linear.weight_scb": mx.ones(3)}))
    refused(source, tmp_path, "text_linear.weight should have the shape")


def test_transformers_without_their_configuration(tmp_path):
    source = Path(shutil.copytree(GOLDENS / "convert" / "transformers_moshi" / "source", tmp_path / "source"))
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").unlink()
    refused(source, tmp_path, "layout of transformers' moshi, but config.json is missing.*--lm-config")
    for changes, message in (
        ({"ffn_dim": 129}, "'ffn_dim' should be even"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "of the type 'yarn' are not supported"),
        ({"rms_norm_eps": 1e-3}, "'rms_norm_eps' should be one of"),
        ({"head_dim": 3}, "'head_dim' should be 16"),
        ({"hidden_act": "tanh"}, "'hidden_act' should be one of silu"),
        ({"num_key_value_heads": 3}, "multiple of 'num_key_value_heads'"),
        ({"vocab_size": 70}, "should have the shape"),
        ({"num_hidden_layers": 3}, "lacks"),
        (
            {"audio_encoder_config": {**config["audio_encoder_config"], "use_causal_conv": False}},
            "'use_causal_conv' should be True",
        ),
        ({"audio_encoder_config": {**config["audio_encoder_config"], "num_quantizers": 9}}, "lacks"),
    ):
        (source / "config.json").write_text(json.dumps({**config, **changes}))
        refused(source, tmp_path, message)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cross_attn", "no place for .*cross attention"),
        ("low_rank", "no place for .*low-rank embeddings"),
        ("wps_schedule", "no place for .*shared by several codebooks"),
        ("extra_heads", "no place for .*extra heads"),
        ("legacy_layer_norm", "no place for .*the norm 'layer_norm'"),
        ("tts_like", "no place for"),
    ],
)
def test_models_that_transformers_has_no_place_for(tmp_path, case, message):
    import golden_convert

    source = golden_convert.only(GOLDENS / "lm" / case, tmp_path, "config.json", "model.safetensors")
    refused(source, tmp_path, message, "--to", "transformers")


def test_models_that_pytorch_has_no_place_for(tmp_path):
    import golden_convert

    source = golden_convert.only(GOLDENS / "family" / "helium_hf", tmp_path, "config.json", "model.safetensors")
    refused(source, tmp_path, "PyTorch program has no text models", "--to", "pytorch")


def test_values_that_do_not_fit_the_type(source, tmp_path):
    one_file(source, lambda t: t.update({"text_linear.weight": t["text_linear.weight"] * 1e6}))
    refused(source, tmp_path, r"has values up to .*e\+05, which F16 cannot hold.*--dtype bf16", "--dtype", "f16")


def test_damaged_codec(tiny_copy, tmp_path):
    codec = tiny_copy / "tokenizer-e351c8d8-checkpoint125.safetensors"
    name = "decoder.model.0.conv.conv.weight"
    change(codec, lambda t: t.update({name: t[name] * mx.nan}))
    refused(tiny_copy, tmp_path, f"NaN or infinite values in {name}")
    change(codec, lambda t: t.pop(name))
    refused(tiny_copy, tmp_path, f"lacks 1 tensor .*{name}")
    (tiny_copy / "mimi.json").unlink()
    refused(tiny_copy, tmp_path, "lacks the file 'mimi.json'")


def test_unequal_copies_cannot_be_written_back(tmp_path):
    """The MLX layout repeats what PyTorch holds once."""
    import golden_convert

    made = golden_convert.convert(GOLDENS / "convert" / "pytorch_shards" / "source", tmp_path / "mlx")
    name = "depformer.slices.1.transformer.layers.0.norm1.weight"
    change(made / "model.safetensors", lambda t: t.update({name: t[name] * 2}))
    refused(made, tmp_path, "should be the same, since the other layout has one tensor", "--to", "pytorch")


# Voices -----------------------------------------------------------------------------------------------------------


def archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, raw in members:
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return path


def test_voices_archives(tmp_path):
    voice = (GOLDENS / "family" / "personaplex" / "tiny_voice.pt").read_bytes()
    link = tarfile.TarInfo("voices/LINK.pt")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    path = archive(tmp_path / "v.tgz", [(tarfile.TarInfo("../../../outside/EVIL.pt"), voice), (link, b"")])
    assert main([str(path), str(tmp_path / "made")]) == 0
    # By its own name alone, inside the folder; the link is not followed.
    assert sorted(p.name for p in (tmp_path / "made").iterdir()) == ["EVIL.safetensors", "README.md"]
    shutil.rmtree(tmp_path / "made")
    refused(archive(tmp_path / "none.tgz", [(tarfile.TarInfo("a.txt"), b"x")]), tmp_path, "holds no voices")
    (tmp_path / "cut.tgz").write_bytes(path.read_bytes()[:200])
    refused(tmp_path / "cut.tgz", tmp_path, "cut short")
    marker = tmp_path / "ran"
    bad = torch_files.write_archive(tmp_path / "bad.pt", torch_files.dictionary({"embeddings": code(marker)}), {})
    refused(
        archive(tmp_path / "bad.tgz", [(tarfile.TarInfo("bad.pt"), bad.read_bytes())]), tmp_path, "not only tensors"
    )
    assert not marker.exists()


# Where it goes ----------------------------------------------------------------------------------------------------


def test_destinations(source, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for name, message in (("full", "exists and is not empty"), ("full/x", "is a file"), ("link", "is a symbolic link")):
        if name == "link":
            (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match=message):
            main([str(source), str(tmp_path / name)])
    (tmp_path / ".made.part").symlink_to(tmp_path / "elsewhere")
    refused(source, tmp_path, "is in the way; remove it")
    (tmp_path / ".made.part").unlink()
    (tmp_path / "ready").mkdir()
    assert main([str(source), str(tmp_path / "ready")]) == 0
    (tmp_path / "other disk").mkdir()
    (tmp_path / "to it").symlink_to("other disk")
    assert main([str(source), str(tmp_path / "to it")]) == 0
    assert (tmp_path / "other disk" / "config.json").is_file()
    assert (tmp_path / "to it").is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def test_no_space(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(source, tmp_path, r"has 0\.0 MB free, .* are needed")


def test_the_disk_fills_up_on_the_way(source, tmp_path):
    """The system refuses a write in the middle: nothing is left, the sentence says why, no traceback."""
    script = """
import resource, signal, sys
from moshi_mlx import commands
from moshi_mlx.convert.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
commands.run(main, sys.argv[1:])
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(source), str(tmp_path / "made")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "cannot be written: file too large" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_every_write_can_fail(tiny_copy, tmp_path, monkeypatch):
    """A disk without space says so when bytes are made safe: at each file in turn, nothing is left and one sentence is said."""
    original, calls = os.fsync, [0]

    def fsync(handle):
        calls[0] -= 1
        if not calls[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    # What the work is, codec, model, tokenizer, description of the codec, configuration, card.
    for n in range(1, 8):
        calls[0] = n
        refused(tiny_copy, tmp_path, "made/.* cannot be written: no space left on device")
        assert calls[0] <= 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(source, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="cannot be made"):
        main([str(source), str(tmp_path / "locked" / "made")])


def test_a_repository_that_cannot_be_had(tmp_path, monkeypatch):
    def offline(repo, name, *, optional=False):
        raise CheckpointError(f"{name} of {repo} is not in the cache and the Hub cannot be reached.")

    monkeypatch.setattr(hub, "download", offline)
    refused(Path("someone/tiny"), tmp_path, "the Hub cannot be reached")


def test_the_command_line_prints_one_sentence(source, tmp_path):
    truncate(source / FIRST)
    done = subprocess.run(
        [sys.executable, "-m", "moshi_mlx.convert", str(source), str(tmp_path / "made")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not done.stdout
