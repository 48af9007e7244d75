"""What the report says: figures that can be checked by hand, the same streamed as in memory, JSON, table and picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from moshi_mlx.convert.source import Request, open_source
from moshi_mlx.convert.verify import seeded_codes
from moshi_mlx.quantize import codes, quality, report, trial
from moshi_mlx.quantize.__main__ import main
from moshi_mlx.quantize.trial import Trial
from test_quantize import config_of, quantize

from moshi_mlx.checkpoint import recipes
from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.errors import InputError, MoshiError
from moshi_mlx.machine import memory
from moshi_mlx.machine.chips import BANDWIDTH

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="module")
def made(tiny_checkpoint, tmp_path_factory) -> tuple[Path, dict]:
    """A folder and its report."""
    folder = tmp_path_factory.mktemp("report")
    flags = ["--report", str(folder / "r.json"), "--frames", "16", "--no-picture"]
    quantize(tiny_checkpoint, folder / "q4", "-q", "4", *flags)
    return folder, json.loads((folder / "r.json").read_text())


def test_figures(made, tiny_checkpoint):
    folder, found = made
    file = folder / "q4" / config_of(folder / "q4")["moshi_name"]
    assert found["result_bytes"] == file.stat().st_size
    tensors = mx.load(str(tiny_checkpoint / "model.safetensors"))
    values = sum(x.size for x in tensors.values())
    assert found["bits_per_weight"] == pytest.approx(8 * file.stat().st_size / values, abs=1e-3)
    assert [s["name"] for s in found["streams"]] == ["text", *(f"codebook {k}" for k in range(8))]
    for stream in found["streams"]:
        assert 0 < stream["kl"] < 1
        assert 0 < stream["top1"] <= 1
    by_layer = {row["layer"]: row for row in found["layers"]}
    name = "transformer.layers.0.self_attn.in_proj"
    w = tensors[f"{name}.weight"]
    q = mx.dequantize(*(p if p.dtype == mx.uint32 else p.astype(mx.float32) for p in mx.quantize(w, 32, 4)), 32, 4)
    w = w.astype(mx.float32)
    expected = (mx.linalg.norm(w - q) / mx.linalg.norm(w)).item()
    assert by_layer[name]["error"] == pytest.approx(expected, rel=1e-4)
    assert by_layer[name]["packing"] == "affine 4 bit, group 32"
    assert len(by_layer) == sum(1 for n in tensors if n.endswith(".weight") and "norm" not in n)


def test_bytes_and_bounds_of_moshi_7b():
    """The table of the feasibility notes: 4.61 GB per frame, 46.1 ms on an M2; keys and values 1.57 GB in a full window."""
    from moshi_mlx.config import presets
    from moshi_mlx.config.description import CheckpointConfig

    cfg = CheckpointConfig.from_dict(presets.MOSHI_7B).lm
    layers = recipes.layers_of(cfg)
    for bits, weights, m2 in ((4, 4.61e9, 46.1), (8, 7.84e9, 78.4)):
        packing = recipes.by_rules(layers, [], recipes.base(bits, None, "affine"))
        read = report.frame_bytes(cfg, packing.layers, mx.bfloat16)
        assert read["temporal"] + read["depth"] == pytest.approx(weights, rel=0.002)
        assert read["full_window"] == pytest.approx(1.57e9, rel=0.01)
        rows = {row["chip"]: row for row in report.chip_rows(read)}
        assert rows["M2"]["ms_empty_window"] == pytest.approx(m2, rel=0.002)
        assert set(rows) == set(BANDWIDTH)
    assert sum(report.frame_bytes(cfg, None, mx.bfloat16)[k] for k in ("temporal", "depth")) == pytest.approx(
        14.75e9, rel=0.002
    )


def test_picture(tiny_checkpoint, tmp_path):
    pytest.importorskip("matplotlib")
    quantize(tiny_checkpoint, tmp_path / "q4", "-q", "4", "--report", str(tmp_path / "r.json"), "--frames", "4")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_table(made, tiny_checkpoint, capfd, tmp_path):
    assert "arithmetic" in made[1]["chips_are"]
    flags = ["--report", str(tmp_path / "x.json"), "--no-picture", "--frames", "4"]
    quantize(tiny_checkpoint, tmp_path / "q", "-q", "8", *flags)
    said = capfd.readouterr().err
    for words in (
        "bits per weight",
        "weights read per frame",
        "KL (nats)",
        "codebook 7",
        "relative error",
        "M4 Max",
        "nobody measured this",
    ):
        assert words in said
    assert not (tmp_path / "x.png").exists()


def test_the_picture_needs_matplotlib(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(
        InputError, match=r"needs matplotlib: pip install matplotlib, or leave it out with --no-picture"
    ):
        main([str(tiny_checkpoint), str(tmp_path / "q"), "-q", "4", "--report", str(tmp_path / "r.json")])
    assert not list(tmp_path.iterdir())


def test_less_bits_cost_more(tiny_checkpoint):
    source = open_source(Request(str(tiny_checkpoint)))
    layers = recipes.layers_of(source.model.config.lm)
    run = Trial(source.model, seeded_codes(source.model.config.lm, 12, 1))
    reference = run.logits()
    found = []
    for bits in (2, 3, 4, 6, 8):
        packing = recipes.by_rules(layers, [], recipes.base(bits, None, "affine"))
        found.append(quality.loss(reference, run.logits(packing.layers)))
    assert found == sorted(found, reverse=True)
    assert quality.loss(reference, run.logits()) == pytest.approx(0, abs=1e-6)


def test_a_trial_is_the_quantised_model(tiny_checkpoint, tmp_path):
    """Rounding in memory predicts what the written file computes."""
    source = open_source(Request(str(tiny_checkpoint))).model
    packing = recipes.by_rules(recipes.layers_of(source.config.lm), [], Quantization(32, 4))
    held_out = seeded_codes(source.config.lm, 8, 1)
    predicted = Trial(source, held_out).logits(packing.layers)
    written = open_source(Request(str(quantize(tiny_checkpoint, tmp_path / "q", "-q", "4")))).model
    found = Trial(written, held_out).logits()
    for a, b in zip(predicted, found, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), atol=1e-5)


@pytest.mark.parametrize("case", ["tiny", "plain", "wps_schedule", "helium_hf"])
def test_streamed_and_in_memory_are_the_same(case, tiny_checkpoint, tmp_path, monkeypatch):
    import golden_convert

    folder = tiny_checkpoint
    if case != "tiny":
        parent = GOLDENS / ("family" if case == "helium_hf" else "lm") / case
        folder = golden_convert.only(parent, tmp_path, "config.json", "model.safetensors")
    source = open_source(Request(str(folder))).model
    cfg = source.config.lm
    packing = recipes.by_rules(recipes.layers_of(cfg), [], Quantization(32, 4)).layers
    held_out = seeded_codes(cfg, 10, 1)
    whole = Trial(source, held_out)
    assert not whole.streamed
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    parts = Trial(source, held_out)
    assert parts.streamed
    for given in ({}, packing, {}):
        for a, b in zip(whole.logits(given), parts.logits(given), strict=True):
            if a is not None:
                np.testing.assert_allclose(np.array(a), np.array(b), atol=2e-5)
    assert all(isinstance(layer, trial.Streamed) for layer in parts._lm.transformer.layers)


def test_a_streamed_model_lets_go_of_its_layers(tiny_checkpoint, monkeypatch):
    import weakref

    source = open_source(Request(str(tiny_checkpoint))).model
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    before = mx.get_active_memory()
    parts = Trial(source, seeded_codes(source.config.lm, 4, 1))
    parts.logits()
    # Logits and norms stay.
    assert mx.get_active_memory() - before < 300_000 < source.tensors.nbytes / 10
    model = weakref.ref(parts._lm)
    del parts
    assert model() is None, "a cycle keeps a model alive after its trial"


# Codes ------------------------------------------------------------------------------------------------------------


def test_codes_from_files(tiny_checkpoint, tmp_path):
    source = open_source(Request(str(tiny_checkpoint)))
    cfg = source.model.config.lm
    drawn = np.array(seeded_codes(cfg, 6, 3))
    np.savez(tmp_path / "a.npz", codes=drawn)
    np.save(tmp_path / "a.npy", drawn[0])
    mx.save_safetensors(str(tmp_path / "a.safetensors"), {"codes": mx.array(drawn)})
    for name in ("a.npz", "a.npy", "a.safetensors"):
        found, what = codes.held_out(source, str(tmp_path / name), None, 1)
        assert np.array_equal(np.array(found), drawn)
        assert what == f"6 frames of {tmp_path / name}"


def damaged(tmp: Path, cfg, kind: str) -> Path:
    drawn = np.array(seeded_codes(cfg, 6, 3))
    path = tmp / "c.npz"
    if kind == "missing":
        return tmp / "none.npz"
    if kind == "pickle":
        np.save(tmp / "c.npy", np.array([{"a": 1}], object), allow_pickle=True)
        return tmp / "c.npy"
    if kind == "text":
        path.write_text("hello")
        return path
    arrays = {
        "other name": {"x": drawn}, "channels": {"codes": drawn[:, :3]}, "floats": {"codes": drawn.astype(np.float32)},
        "large": {"codes": drawn + 300}, "negative": {"codes": drawn - 9}, "empty": {"codes": drawn[..., :0]},
    }  # fmt: skip
    np.savez(path, **arrays[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"), ("pickle", "is not a file of codes"), ("text", "is not a file of codes"),
        ("other name", "no array called 'codes'"), ("channels", r"integers of shape \[17, frames\]"), ("floats", "integers of shape"),
        ("large", "codes should be -1, or 0 to 256"), ("negative", "codes should be -1"), ("empty", "integers of shape"),
    ],
)  # fmt: skip
def test_damaged_codes(tiny_checkpoint, tmp_path, kind, message):
    cfg = open_source(Request(str(tiny_checkpoint))).model.config.lm
    with pytest.raises(MoshiError, match=message):
        codes.read_codes(damaged(tmp_path, cfg, kind), cfg)


def test_codes_of_an_answer(tiny_checkpoint, question):
    """What the model said beside what it heard, moved together."""
    source = open_source(Request(str(tiny_checkpoint)))
    found, what = codes.held_out(source, None, str(question), 1)
    values = np.array(found)
    assert values.shape[:2] == (1, 17)
    assert (values >= 0).all()
    assert "answer to" in what
    # 6 s are 79 frames, of which the last have no whole answer yet.
    assert 70 < values.shape[2] < 80
    again, _ = codes.held_out(source, None, str(question), 1)
    assert np.array_equal(values, np.array(again))


def test_models_that_do_not_answer(tmp_path, question):
    import golden_convert

    source = golden_convert.only(GOLDENS / "lm" / "stt_like", tmp_path, "config.json", "model.safetensors")
    with pytest.raises(InputError, match="--audio needs a model that listens and answers"):
        codes.held_out(open_source(Request(str(source))), None, str(question), 1)


def test_reports_of_models_without_depth(tmp_path):
    """A text model and a listener have one stream."""
    import golden_convert

    (tmp_path / "0").mkdir()
    helium = golden_convert.only(GOLDENS / "family" / "helium_hf", tmp_path / "0", "config.json", "model.safetensors")
    for i, source in enumerate((helium, GOLDENS / "convert" / "transformers_stt" / "source")):
        folder = tmp_path / str(i)
        folder.mkdir(exist_ok=True)
        quantize(
            source, folder / "q", "-q", "8", "--group-size", "32", "--report", str(folder / "r.json"), "--no-picture"
        )
        found = json.loads((folder / "r.json").read_text())
        assert [s["name"] for s in found["streams"]] == ["text"]
        assert found["frame_bytes"]["depth"] == 0
