"""The benchmark command and what it is made of. Times are never tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from moshi_mlx import bench, checkpoint
from moshi_mlx.errors import InputError
from moshi_mlx.machine import chips, footprint
from moshi_mlx.models.traffic import frame_traffic


def test_json(tiny_checkpoint, capsys):
    bench.main(["--model", str(tiny_checkpoint), "--steps", "5", "--warmup", "2", "--batch", "2", "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert set(figures["ms_per_frame"]) == {"p50", "p95", "p99", "max"}
    assert set(figures["parts_ms"]) == {"encode", "temporal", "depth", "decode"}
    assert figures["steps"] == 5
    assert figures["batch"] == 2
    assert figures["bytes_per_frame"]["total"] > 1e6
    assert figures["memory"]["peak"] > figures["memory"]["active"] * 0.9
    assert figures["first_frame_s"] >= figures["load_s"] > 0


def test_table(tiny_checkpoint, capsys):
    bench.main(["--model", str(tiny_checkpoint), "--steps", "3", "--warmup", "1", "--no-compile"])
    out = capsys.readouterr().out
    for word in ("ms per frame", "by part", "missed 80 ms", "read per frame", "retained", "versions"):
        assert word in out


def test_row_fits_the_table(tiny_checkpoint, capsys):
    bench.main(["--model", str(tiny_checkpoint), "--steps", "3", "--warmup", "1", "--row"])
    readme = (Path(__file__).parent.parent / "benchmarks" / "README.md").read_text(encoding="utf-8")
    [header] = [line for line in readme.splitlines() if line.startswith("| date | machine |")]
    row = capsys.readouterr().out.strip()
    assert row.count("|") == header.count("|")
    assert str(tiny_checkpoint.parent) not in row, "a row names no folder of its maker's machine"


def test_picture(tiny_checkpoint, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    bench.main(["--model", str(tiny_checkpoint), "--steps", "3", "--plot", str(tmp_path / "a.png"), "--json"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_comparison(tiny_checkpoint, capsys):
    """The published package's program, run by this one: it uses only names both have."""
    arguments = ["--model", str(tiny_checkpoint), "--steps", "3", "--warmup", "1", "--compare", sys.executable]
    bench.main([*arguments, "--json"])
    figures = json.loads(capsys.readouterr().out)
    runs = figures["language_model_alone"]
    assert set(runs) == {"moshi_mlx", "moshi_mlx_0.3.0"}
    for run in runs.values():
        assert 0 < run["load_s"] <= run["first_step_s"] <= run["first_frame_s"]
        assert run["p50"] <= run["p95"]
        assert run["resident_peak"] > run["peak"] > 1e6
    bench.show(figures)
    assert "language model alone" in " ".join(capsys.readouterr().out.split())


def test_comparison_with_an_environment_that_cannot(tiny_checkpoint):
    with pytest.raises(InputError, match="cannot be run"):
        bench.main(["--model", str(tiny_checkpoint), "--steps", "1", "--compare", "/no/such/python", "--json"])


def test_picture_without_matplotlib(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match="needs matplotlib: pip install matplotlib"):
        bench.main(["--model", str(tiny_checkpoint), "--steps", "3", "--plot", str(tmp_path / "a.png")])
    assert not list(tmp_path.iterdir())


def test_refusals(tiny_checkpoint):
    with pytest.raises(InputError, match="at least 1"):
        bench.main(["--model", str(tiny_checkpoint), "--steps", "0"])


def test_traffic_of_a_frame(tiny_checkpoint):
    loaded = checkpoint.load(tiny_checkpoint, dtype=None)
    lm = loaded.lm
    full, half = frame_traffic(lm, loaded.mimi), frame_traffic(lm, None, generated=4)
    assert full.temporal == half.temporal
    assert half.depth == full.depth // 2
    assert half.codec == 0
    assert full.total == full.temporal + full.depth + full.codec
    stored = sum(m.weight.nbytes for m in (lm.text_linear, lm.out_norm))
    assert full.temporal > stored


def test_chips():
    assert chips.bandwidth("Apple M2 Max") == 400
    assert chips.bandwidth("M4") == 120
    assert chips.bandwidth("AMD EPYC") is None
    assert chips.chip()


@pytest.mark.parametrize(
    ("pressure", "pmset", "said"),
    [
        (0, "", "nominal"),
        (1, "CPU_Speed_Limit = 100\n", "moderate pressure"),
        (2, "CPU_Speed_Limit = 70\n", "heavy pressure, limited to 70 % speed"),
        (9, "", "pressure level 9"),
        (None, "CPU_Speed_Limit = 70\n", "limited to 70 % speed"),
        (None, "Note: No thermal warning level has been recorded\n", "no limit recorded"),
    ],
)
def test_heat(pressure, pmset, said):
    assert chips.describe_heat(pressure, pmset) == said


def test_heat_is_asked_of_macos_only(monkeypatch):
    monkeypatch.setattr(chips, "_pressure", lambda: 2)
    monkeypatch.setattr(chips.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=""))
    monkeypatch.setattr(chips.sys, "platform", "linux")
    assert chips.thermal_state() is None
    monkeypatch.setattr(chips.sys, "platform", "darwin")
    assert chips.thermal_state() == "heavy pressure"


def test_footprint():
    m = footprint.measure()
    assert m.physical > 1e6
    assert m.resident_peak >= m.physical * 0.5
