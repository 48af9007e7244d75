"""What only a GPU can show, in a few minutes: that its numbers are right, that rings stay in place, what TF32 costs, how long a frame takes.

    python benchmarks/gpu_checks.py [--json FIGURES] [--without-timing] [--full-size]

Runs on the default device of MLX: a Mac's GPU, a CUDA card (`pip install 'mlx[cuda13]'`), and, to try the script itself, a CPU. The goldens are
those of the test suite, in float32, with TF32 off. Single operations in bfloat16 (on a CPU in float32) are compared with NumPy in float64.
`--full-size` times Moshi 7B with random weights too (25 GB of GPU memory while they are drawn). Ends with 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

import golden_hibiki  # noqa: E402
import golden_lm  # noqa: E402
import golden_mimi  # noqa: E402
import golden_personaplex  # noqa: E402
import golden_system  # noqa: E402
import gpu_operations  # noqa: E402
import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
from machine import describe_machine  # noqa: E402
from mlx.utils import tree_flatten, tree_map  # noqa: E402
from toy import make_lm  # noqa: E402

import moshi_mlx  # noqa: E402, F401 - turns TF32 off, which MLX looks at when it first multiplies
from moshi_mlx.checkpoint import load_lm_file, load_mimi_file  # noqa: E402
from moshi_mlx.config import presets  # noqa: E402
from moshi_mlx.config.description import CheckpointConfig  # noqa: E402
from moshi_mlx.config.parts import MimiConfig  # noqa: E402
from moshi_mlx.engine.frame import FrameStep  # noqa: E402
from moshi_mlx.engine.generate import LmGen  # noqa: E402
from moshi_mlx.engine.state import let_go  # noqa: E402
from moshi_mlx.engine.step import Step  # noqa: E402
from moshi_mlx.models.lm import Lm  # noqa: E402
from moshi_mlx.models.mimi_model import MimiModel  # noqa: E402
from moshi_mlx.modules.sampling import Sampler  # noqa: E402

GOLDENS = ROOT / "tests" / "goldens"
# Of a logit's spread: bfloat16 keeps 8 bits, and the layers add their roundings up (0.29 on MLX's CPU backend).
BF16_LOGITS, SAME_CHOICE = 0.5, 0.9
Figures = dict[str, Any]


def cases(pattern: str) -> list[Path]:
    return sorted(GOLDENS.glob(pattern))


# Goldens, float32 -----------------------------------------------------------------------------------------------


def system() -> Figures:
    """Codec, language model and codec again: every token and code equal, compiled and plain."""
    for expected in cases("system/*/expect.safetensors"):
        folder = expected.parent
        for compile in (False, True):
            golden_system.check_session(folder, next(folder.glob("*.wav")), golden_lm.read(expected), compile)
    return {"cases": len(cases("system/*/expect.safetensors"))}


def language_models() -> Figures:
    runs = cases("lm/*/runs/*.json")
    for run in runs:
        golden_lm.check_run(golden_lm.load(run.parent.parent), run)
    return {"runs": len(runs)}


def codec() -> Figures:
    found = cases("mimi/*/config.json")
    for config in found:
        golden_mimi.check(config.parent)
    return {"cases": len(found)}


def hibiki() -> Figures:
    found = [c.parent for c in cases("family/hibiki*/**/runs.json")]
    for case in found:
        golden_hibiki.check(case)
    return {"cases": len(found)}


def personaplex() -> Figures:
    found = [c.parent for c in cases("family/personaplex/run.json")]
    for case in found:
        golden_personaplex.check(case)
    return {"cases": len(found)}


# bfloat16 -------------------------------------------------------------------------------------------------------


def teacher_forced() -> Figures:
    """The system golden's language model in bfloat16 beside float32, both fed the tokens that float32 chose."""
    expected = cases("system/*/expect.safetensors")[0]
    files = expected.parent
    config = json.loads((files / "config.json").read_text())
    weights = files / config["moshi_name"]

    def load(dtype: mx.Dtype) -> Lm:
        lm = Lm(CheckpointConfig.from_dict(config).lm)
        load_lm_file(lm, weights, dtype=dtype)
        return lm

    lm, greedy = load(mx.float32), Sampler(temp=0)
    codes = golden_lm.read(expected)["codes_in"][: lm.cfg.other_codebooks]
    gen = LmGen(lm, text_sampler=greedy, audio_sampler=greedy, compile=False)
    recorder = golden_lm._record_inputs(lm)
    text, audio = [], []
    for t in range(codes.shape[1]):
        gen.step(codes[None, :, t])
        text.append(np.array(gen.output.text))
        audio.append(np.array(gen.output.audio))
    recorder.restore()
    inputs = {
        "model_input": mx.array(np.stack(recorder.seen)),
        "text_token": mx.array(np.stack(text)),
        "audio_tokens": mx.array(np.stack(audio)),
    }
    figures: Figures = {}
    exact = golden_lm.imposed_logits(lm, inputs)
    rounded = golden_lm.imposed_logits(load(mx.bfloat16), inputs)
    for name, wide, narrow in zip(("text", "audio"), exact, rounded, strict=True):
        figures[f"{name} off by, in deviations"] = round(float(np.abs(wide - narrow).max() / wide.std()), 4)
        figures[f"{name} same choice"] = round(float((wide.argmax(-1) == narrow.argmax(-1)).mean()), 4)
        assert figures[f"{name} off by, in deviations"] < BF16_LOGITS, figures
        assert figures[f"{name} same choice"] > SAME_CHOICE, figures
    return figures


# Rings ----------------------------------------------------------------------------------------------------------


def rings_in_place() -> Figures:
    """Fifty steps take no second copy of any ring: peak over active memory stays far below one of them."""
    figures: Figures = {}
    for name, options in {
        "whole": {},
        "8 bits": {"kv_bits": 8},
        "own clocks": {"support_out_of_sync": True},
        "batch": {"batch_size": 2},
    }.items():
        # Rings as large as the window from the first frame: 8 MB each in float32.
        lm = make_lm(dim=256, num_heads=4, num_layers=4, context=4096)
        gen = LmGen(lm, seed=0, **options)
        gen.state = gen._step.init_state(gen.seeds, 4096, not options.get("support_out_of_sync"))
        given = np.zeros((gen.batch_size, lm.cfg.other_codebooks), int)
        for _ in range(5):
            gen.step(given)
        mx.eval(gen.frame)
        ring = max(a.nbytes for _, a in tree_flatten(gen._state["trunk"]["layers"]))
        mx.synchronize()
        mx.clear_cache()
        mx.reset_peak_memory()
        active = mx.get_active_memory()
        for _ in range(50):
            gen.step(given)
            mx.eval(gen.frame)
        over = mx.get_peak_memory() - active
        figures[f"{name}: MB over active, of a ring"] = [round(over / 1e6, 3), round(ring / 1e6, 3)]
        assert over < ring / 2, figures
    return figures


# TF32 -----------------------------------------------------------------------------------------------------------


def golden_codes(full_size: bool) -> list[float]:
    """Share of the codec goldens' codes that come out equal, by case; with `full_size` of the published configuration too."""
    shares = []
    for config in cases("mimi/*/config.json"):
        mimi = golden_mimi.load(config, config.with_name("model.safetensors"))
        data = golden_lm.read(config.with_name("io.safetensors"))
        for name in sorted(k for k in data if k.startswith("offline.") and k.endswith(".codes")):
            codes = mimi.encode(mx.array(data[name.removesuffix("codes") + "pcm"]))
            shares.append(float((np.array(codes) == data[name]).mean()))
    for notes in cases("mimi/full*/notes.json") if full_size else []:
        mimi = MimiModel(MimiConfig.from_dict(presets.MIMI_V0_1))
        with tempfile.TemporaryDirectory() as folder:
            seed = json.loads(notes.read_text())["seed"]
            load_mimi_file(
                mimi, golden_mimi.seeded_weights(notes.parent.parent, seed, Path(folder) / "mimi.safetensors")
            )
        data = golden_lm.read(notes.with_name("io.safetensors"))
        for name in ("short", "long"):
            pcm = data[f"{name}.pcm"]
            pcm = pcm.astype(np.float32) / 32768 if pcm.dtype == np.int16 else pcm
            codes = mimi.encode(mx.array(pcm).reshape(1, 1, -1))
            shares.append(float((np.array(codes) == data[f"{name}.codes"]).mean()))
    return shares


def tf32(full_size: bool) -> Figures:
    """Codes with TF32 off, as the package runs, and on, in a process of its own."""
    command = [sys.executable, __file__, "--golden-codes", *(["--full-size"] if full_size else [])]
    out = subprocess.run(
        command, env={**os.environ, "MLX_ENABLE_TF32": "1"}, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr[-500:]
    off, on = golden_codes(full_size), json.loads(out.stdout.splitlines()[-1])
    assert min(off) > golden_mimi.MIN_CODES_EQUAL, off
    return {"codes equal, off": [round(x, 5) for x in off], "codes equal, on": [round(x, 5) for x in on]}


# Time -----------------------------------------------------------------------------------------------------------


def random_model(config: dict, bits: int | None) -> Lm:
    """Random weights in bfloat16, or packed, drawn on the device layer by layer."""
    lm = Lm(CheckpointConfig.from_dict(config).lm)
    lm.set_dtype(mx.bfloat16)

    def draw(a: mx.array) -> mx.array:
        scale = 1 / np.sqrt(a.shape[-1]) if a.ndim > 1 else 1
        return (mx.random.normal(a.shape) * scale).astype(mx.bfloat16) if a.ndim > 1 else mx.ones(a.shape, mx.bfloat16)

    for _, module in lm.named_modules():
        own = {k: v for k, v in module.items() if isinstance(v, mx.array)}
        if own:
            module.update(tree_map(draw, own))
            mx.eval(module.parameters())
    if bits is not None:
        nn.quantize(lm, bits=bits, group_size={4: 32, 8: 64}[bits])
    mx.eval(lm.parameters())
    mx.clear_cache()
    return lm


def random_codec(config: dict) -> MimiModel:
    mimi = MimiModel(MimiConfig.from_dict(config))
    shapes = tree_flatten(mimi.parameters())
    mimi.load_weights([(n, mx.random.normal(a.shape) * (a.shape[-1] ** -0.5 / 2)) for n, a in shapes])
    mx.eval(mimi.parameters())
    return mimi


def frame_time(config: dict, codec: dict, bits: int | None, frames: int = 60) -> Figures:
    """Milliseconds per whole frame after a warm-up, evaluated one by one as a conversation does."""
    lm, mimi = random_model(config, bits), random_codec(codec)
    frame = FrameStep(Step(lm), mimi)
    state = frame.first(frame.init_state([0]))
    rng, wall, host = np.random.default_rng(0), [], []
    for i in range(20 + frames):
        pcm = mx.array(rng.uniform(-0.1, 0.1, (1, mimi.frame_size)).astype(np.float32))
        start = time.perf_counter()
        new, sound, tokens = frame(state, pcm, i + 1)
        let_go(state)
        state = new
        host.append(time.perf_counter() - start)
        mx.eval(state, sound, tokens)
        np.array(sound), np.array(tokens)
        wall.append(time.perf_counter() - start)
    p50, p95 = (round(1000 * float(np.percentile(wall[20:], p)), 2) for p in (50, 95))
    figures = {"first frame": round(1000 * wall[0], 1), "p50": p50, "p95": p95}
    figures["graph"] = round(1000 * float(np.median(host[20:])), 2)
    figures["GB active"] = round(mx.get_active_memory() / 1e9, 3)
    return figures


TIMED = {
    "toy": (
        {**presets.MOSHI_7B, "dim": 256, "num_heads": 4, "num_layers": 4, "depformer_dim": 128, "depformer_num_heads": 4, "depformer_num_layers": 2,
         "depformer_dim_feedforward": 528},
        {**presets.MIMI_V0_1, "quantizer": {**presets.MIMI_V0_1["quantizer"], "n_q": 8}},
        (None,),
    ),
    "1b": (presets.HIBIKI_1B, {**presets.MIMI_V0_1, "quantizer": {**presets.MIMI_V0_1["quantizer"], "n_q": 8}}, (None, 4)),
    "7b": (presets.MOSHI_7B, {**presets.MIMI_V0_1, "quantizer": {**presets.MIMI_V0_1["quantizer"], "n_q": 8}}, (None, 8, 4)),
}  # fmt: skip


def time_of(name: str) -> Callable[[], Figures]:
    def run() -> Figures:
        config, codec, precisions = TIMED[name]
        return {f"q{bits}" if bits else "bf16": frame_time(config, codec, bits) for bits in precisions}

    return run


# All of them ----------------------------------------------------------------------------------------------------


def run(checks: dict[str, Callable[[], Figures]], to: Path | None) -> list[dict]:
    """Each after the other; what is known so far is printed, and written `to` a file, at once."""
    rows: list[dict] = []
    for name, check in checks.items():
        start = time.perf_counter()
        try:
            row = {"check": name, "ok": True, "figures": check()}
        except Exception as e:
            # One check's end is not the end of the others.
            where = traceback.extract_tb(e.__traceback__)[-1]
            place = f"{type(e).__name__} at {Path(where.filename).name}:{where.lineno}"
            row = {"check": name, "ok": False, "figures": {place: str(e)[:600]}}
        row["seconds"] = round(time.perf_counter() - start, 1)
        rows.append(row)
        shown = ", ".join(f"{k} {v}" for k, v in row["figures"].items())
        print(f"{'ok  ' if row['ok'] else 'FAIL'} {name:28} {row['seconds']:6.1f} s   {shown}", flush=True)
        if to is not None:
            to.write_text(json.dumps({"machine": describe_machine(), "checks": rows}, indent=1) + "\n")
        mx.clear_cache()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--without-timing", action="store_true")
    parser.add_argument(
        "--full-size", action="store_true", help="models of 1 and 7 billion parameters and the whole codec too"
    )
    parser.add_argument("--golden-codes", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.golden_codes:
        print(json.dumps(golden_codes(args.full_size)))
        return 0
    print(f"{describe_machine()}, MLX_ENABLE_TF32={os.environ['MLX_ENABLE_TF32']}")
    checks: dict[str, Callable[[], Figures]] = {
        "system golden": system,
        "codec goldens": codec,
        "language-model goldens": language_models,
        "Hibiki goldens": hibiki,
        "PersonaPlex goldens": personaplex,
        "system golden, bfloat16": teacher_forced,
        "rings in place": rings_in_place,
        "TF32 and codes": partial(tf32, args.full_size),
        **gpu_operations.CHECKS,
    }
    if not args.without_timing:
        checks |= {f"ms per frame, {name}": time_of(name) for name in (TIMED if args.full_size else ("toy",))}
    rows = run(checks, args.json)
    failed = [r["check"] for r in rows if not r["ok"]]
    print(
        f"{len(rows) - len(failed)} of {len(rows)} checks passed" + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
