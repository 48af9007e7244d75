"""`python -m moshi_mlx.bench --tune`: what a trial measures beyond the benchmark, and what is said of all of them."""

from __future__ import annotations

import argparse
import json
import shlex
import time

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..checkpoint.published import DEMO_FOLDER
from ..commands import say
from ..engine.generate import LmGen
from ..errors import InputError
from ..machine import device, tuning
from ..modules import transformer
from ..session.session import Session

# Rings of less are copied in no time, and a frame has as much memory of its own.
WORTH_A_LOOK = 32 << 20


def tune(args: argparse.Namespace, argv: list[str]) -> int:
    """Try settings and print what to use."""
    arguments = [a for a in argv if a not in ("--tune", "--json", "--row")]
    precisions = [None, "8", "4"] if args.quantized is None else [None]
    trials: list[tuning.Trial] = []

    def tell(trial: tuning.Trial) -> None:
        trials.append(trial)
        times = "" if trial.failed else f"{trial.start:.1f} ms per frame, {trial.full:.1f} with the window full: "
        say(f"{trial.setting}: {times}{trial.verdict()}")

    rounds = tuning.settings(precisions, args.kv_bits, args.context, buffers=device.on_gpu())
    best = tuning.search(rounds, lambda s: tuning.measure(arguments, s), tell)
    if not best.usable:
        raise InputError("none of the settings could be used; the first one's trouble is said above.")
    environment = "".join(f"{k}={v} " for k, v in best.setting.environment.items())
    flags = [*checkpoint_flags(args), *best.setting.flags]
    line = f"{environment}python -m moshi_mlx.local {shlex.join(flags)}"
    if args.json:
        shown = [
            {
                "setting": str(t.setting),
                "start_ms": t.start,
                "full_ms": t.full,
                "worst_ms": t.worst,
                "verdict": t.verdict(),
            }
            for t in trials
        ]
        print(json.dumps({"trials": shown, "best": str(best.setting), "line": line}, indent=1))
        return 0
    say(f"fastest here: {best.setting}, which {best.verdict()}")
    print(line.strip())
    return 0


def checkpoint_flags(args: argparse.Namespace) -> list[str]:
    """The flags that name the checkpoint, as they were given."""
    named = {
        "--model": args.model, "--hf-repo": args.hf_repo, "-q": args.quantized, "--moshi-weights": args.moshi_weights,
        "--mimi-weights": args.mimi_weights, "--tokenizer": args.tokenizer, "--lm-config": args.lm_config, "--lora": args.lora,
        "--dtype": args.dtype, "--kv-bits": args.kv_bits, "--context": args.context,
    }  # fmt: skip
    if args.model == str(DEMO_FOLDER):
        named = {"--demo": "", **named, "--model": None}
    return [part for flag, value in named.items() if value is not None for part in (flag, _shown(value)) if part]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def full_window(session: Session, sound: np.ndarray, steps: int) -> dict[str, float]:
    """Milliseconds of frames as they are once the attention window is full: the conversation is put there, whatever its rings hold."""
    state = session.state
    lm, limit = state["lm"], session.lm.transformer.capacity()
    trunk = lm["trunk"]
    if limit is not None:
        trunk = transformer.grow(trunk, limit) if transformer.capacity_of(trunk) < limit else trunk
        trunk = {**trunk, "position": mx.full(trunk["position"].shape, limit, mx.int32)}
        lm = {**lm, "trunk": trunk, "offset": mx.full(lm["offset"].shape, limit, mx.int32)}
        session.state = {**state, "lm": lm}
    del state, lm, trunk
    times = []
    for i in range(3 + steps):
        start = time.perf_counter()
        session.step(sound[i % len(sound)])
        times.append(1000 * (time.perf_counter() - start))
    return percentiles(times[3:])


def rings_copied(session: Session, kv_bits: int | None, steps: int = 30) -> bool:
    """Whether steps that are begun before the last one was read take the rings' memory a second time."""
    gen = LmGen(session.lm, seed=0, kv_bits=kv_bits)
    given = np.zeros((1, session.lm.cfg.other_codebooks), np.int32)
    for _ in range(5):
        gen.step(given)
    mx.eval(gen.frame)
    rings = sum(a.nbytes for a in dict(tree_flatten(gen.state["trunk"]["layers"])).values())
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(steps):
        gen.step(given)
    mx.eval(gen.frame)
    return mx.get_peak_memory() - before > max(rings / 2, WORTH_A_LOOK)


def percentiles(times: list[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(times, p)), 2) for name, p in (("p50", 50), ("p95", 95))}
