"""The benchmark command and what it is made of. Times are never tested."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mac_table
import numpy as np
import pytest

from moshi_mlx import checkpoint
from moshi_mlx.bench import __main__ as bench
from moshi_mlx.bench import measure, tune
from moshi_mlx.errors import InputError
from moshi_mlx.machine import chips, footprint, tuning
from moshi_mlx.models.traffic import frame_traffic
from moshi_mlx.modules.transformer import capacity_of
from moshi_mlx.session import Session


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
    for word in ("ms per frame", "by part", "80 ms apart", "missed 80 ms", "read per frame", "retained", "versions"):
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
    measure.show(figures)
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


# Tuning -------------------------------------------------------------------------------------------------------------


def trial(setting: tuning.Setting, full: float, **more) -> tuning.Trial:
    return tuning.Trial(setting, full, full, full, **more)


def found(times: dict[str, float], rounds: list, copies: tuple[str, ...] = ()) -> tuple[tuning.Trial, list[str]]:
    """What the search ends with where settings take `times` (100 ms otherwise), and what it tried."""
    tried: list[str] = []

    def run(setting: tuning.Setting) -> tuning.Trial:
        tried.append(str(setting))
        return trial(setting, times.get(str(setting), 100.0), copies=str(setting) in copies)

    return tuning.search(rounds, run, lambda _: None), tried


BUFFERED = "MLX_MAX_OPS_PER_BUFFER=200 MLX_MAX_MB_PER_BUFFER=500"


def test_what_keeps_up_as_it_is_loses_nothing():
    best, tried = found({"as it is": 40.0, BUFFERED: 38.0}, tuning.settings([None, "8", "4"], None, None))
    assert str(best.setting) == BUFFERED and best.keeps_up
    assert not any("-q" in t or "--kv-bits" in t or "--context" in t for t in tried)


def test_less_is_taken_until_something_keeps_up():
    times = {"-q 8": 90.0, "-q 4": 75.0, "-q 4 --kv-bits 8": 60.0}
    best, tried = found(times, tuning.settings([None, "8", "4"], None, None))
    assert str(best.setting) == "-q 4 --kv-bits 8"
    assert tried[:3] == ["as it is", "-q 8", "-q 4"]
    assert not any("--context" in t for t in tried)


def test_settings_that_copy_rings_are_refused():
    best, _ = found({"as it is": 40.0, BUFFERED: 20.0}, tuning.settings([None], 8, 60), copies=(BUFFERED,))
    assert str(best.setting) == "as it is"
    assert "refused" in trial(tuning.Setting(), 1.0, copies=True).verdict()


def test_small_differences_change_nothing():
    best, _ = found({"as it is": 40.0, BUFFERED: 39.5}, tuning.settings([None], 8, 60))
    assert str(best.setting) == "as it is"


def test_what_was_asked_for_is_not_varied():
    assert len(tuning.settings([None], 8, 60, buffers=False)) == 1


def test_tune(tiny_checkpoint, capsys):
    """One real round in child processes, with the line to use."""
    argv = [
        "--model",
        str(tiny_checkpoint),
        "--steps",
        "3",
        "--warmup",
        "1",
        "--tune",
        "--json",
        "--kv-bits",
        "8",
        "-q",
        "16",
        "--context",
        "10",
    ]
    assert bench.main(argv) == 0
    said = json.loads(capsys.readouterr().out)
    [one] = said["trials"]
    assert one["full_ms"] > 0 and one["verdict"]
    assert said["line"].endswith(f"--model {tiny_checkpoint} -q 16 --kv-bits 8 --context 10")


def test_a_setting_that_fails_says_why(tiny_checkpoint):
    t = tuning.measure(["--model", str(tiny_checkpoint), "--steps", "0"], tuning.Setting())
    assert not t.usable and "at least 1" in t.verdict()


def test_the_full_window_is_where_it_is_said_to_be(tiny_checkpoint):
    session = Session.load(tiny_checkpoint, compile=False)
    sound = np.zeros((4, 1920), np.float32)
    session.step(sound[0])
    assert tune.full_window(session, sound, 2)["p50"] > 0
    trunk = session.state["lm"]["trunk"]
    assert int(trunk["position"].item()) > 250 == capacity_of(trunk)
    assert not tune.rings_copied(session, None, 5)


def test_the_page_about_macs_is_that_of_its_script():
    """`python benchmarks/mac_table.py --write` renews it."""
    assert mac_table.PAGE.read_text(encoding="utf-8") == mac_table.page()
    assert mac_table.LAUNCHES == 1484, "as tests/test_counts.py holds it"
