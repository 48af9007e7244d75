"""What `python -m moshi_mlx.bench` measures and how it is shown."""

from __future__ import annotations

import argparse
import gc
import io
import json
import platform
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..commands.flags import TALKERS, refuse_overwriting
from ..commands.loading import check_checkpoint, load, samplers
from ..commands.telling import console, say
from ..errors import InputError
from ..machine import chips, device, footprint
from ..machine.memory import gigabytes, total_bytes
from ..models.traffic import frame_traffic
from ..modules import transformer
from ..output import check_writable, write_bytes
from ..session.session import Session
from ..version import __version__
from . import peer, tune

FRAME_MS = 80.0
PART_STEPS = 30
# Frames with the pauses of a conversation before them, in which a chip clocks down.
COLD_STEPS = 25
# What products with 4-bit weights reach by themselves with one row, by others' measurements on several chips.
BEST_FRACTION = "77-79 %"


def run(args: argparse.Namespace, typed: list[str]) -> int:
    """The command; `typed` are its arguments as they were."""
    check(args)
    check_checkpoint(args, TALKERS)
    if args.tune:
        return tune.tune(args, typed)
    begin = time.perf_counter()
    loaded = load(args, batch=args.batch)
    load_s = time.perf_counter() - begin
    text_sampler, audio_sampler = samplers(args, loaded.config.generation)
    session = Session(
        loaded, batch=args.batch, seed=args.seed, text_sampler=text_sampler, audio_sampler=audio_sampler, cfg_coef=args.cfg_coef,
        compile=args.compile, kv_bits=args.kv_bits,
    )  # fmt: skip
    sound = np.random.default_rng(args.seed).uniform(-0.1, 0.1, (64, args.batch, session.frame_size)).astype(np.float32)
    session.step(sound[0])
    first_s = time.perf_counter() - begin
    times = timed(session, sound, args)
    figures = {
        **about(args, session),
        "load_s": round(load_s, 2),
        "first_frame_s": round(first_s, 2),
        **summary(times, session),
    }
    if not args.real_time:
        figures["cold_ms"] = cold(session, sound, min(COLD_STEPS, args.steps))
    figures["parts_ms"] = parts(session, sound, min(PART_STEPS, args.steps))
    if args.trial:
        figures["full_window"] = tune.full_window(session, sound, min(PART_STEPS, args.steps))
        figures["rings_copied"] = tune.rings_copied(session, args.kv_bits)
    if args.compare:
        files, steps = loaded.files, min(args.steps, 200)
        # Each of them needs the memory that this one has taken.
        del loaded, session
        gc.collect()
        mx.clear_cache()
        figures["language_model_alone"] = {
            "moshi_mlx": peer.measure_ours(files, steps),
            "moshi_mlx_0.3.0": peer.measure_published(args.compare, files, steps),
        }
    if args.plot:
        draw(times["wall_ms"], Path(args.plot), figures)
    if args.json:
        print(json.dumps(figures, indent=1))
    elif args.row:
        print(row(figures))
    else:
        show(figures)
    return 0


def check(args: argparse.Namespace) -> None:
    if args.steps < 1 or args.warmup < 1 or args.batch < 1:
        raise InputError("--steps, --warmup and --batch should be at least 1.")
    if args.plot:
        check_writable(args.plot)
        refuse_overwriting(args, [args.plot])
        _matplotlib()


def timed(session: Session, sound: np.ndarray, args: argparse.Namespace) -> dict[str, list[float]]:
    """Wall and thread time of every frame after the warm-up, in ms."""
    for i in range(args.warmup):
        session.step(sound[i % len(sound)])
    mx.clear_cache()
    mx.reset_peak_memory()
    wall: list[float] = []
    host: list[float] = []
    columns = (TextColumn("frames"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("run", total=args.steps)
        due = time.perf_counter()
        for i in range(args.steps):
            if args.real_time:
                due = max(due + FRAME_MS / 1000, time.perf_counter())
                time.sleep(max(0.0, due - time.perf_counter()))
            start, cpu = time.perf_counter(), time.thread_time()
            session.step(sound[i % len(sound)])
            host.append(1000 * (time.thread_time() - cpu))
            wall.append(1000 * (time.perf_counter() - start))
            if i % 10 == 9:
                bar.update(task, completed=i + 1)
    return {"wall_ms": wall, "host_ms": host}


def cold(session: Session, sound: np.ndarray, steps: int) -> dict[str, float]:
    """Milliseconds of frames that begin 80 ms apart, as in a conversation: what counts for a talk, where hot ones count for files."""
    times = []
    for i in range(steps):
        start = time.perf_counter()
        session.step(sound[i % len(sound)])
        times.append(1000 * (time.perf_counter() - start))
        time.sleep(max(0.0, FRAME_MS / 1000 - (time.perf_counter() - start)))
    return tune.percentiles(times)


def about(args: argparse.Namespace, session: Session) -> dict[str, Any]:
    loaded = session.checkpoint
    return {
        "date": str(date.today()),
        "chip": chips.chip(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "moshi_mlx": __version__,
        "device": mx.default_device().type.name,
        "memory_bytes": total_bytes(),
        "checkpoint": loaded.files.source,
        "precision": loaded.precision,
        "activations": str(loaded.lm.dtype).removeprefix("mlx.core."),
        "context_frames": loaded.lm.cfg.transformer.context,
        "kv_bits": args.kv_bits,
        "batch": args.batch,
        "steps": args.steps,
        "compiled": args.compile,
        "thermal": chips.thermal_state(),
    }


def summary(times: dict[str, list[float]], session: Session) -> dict[str, Any]:
    wall = np.array(times["wall_ms"])
    p50, p95, p99 = (float(np.percentile(wall, p)) for p in (50, 95, 99))
    rings = ring_bytes(session)
    traffic = frame_traffic(session.lm, session.mimi, ring_bytes=rings)
    memory = footprint.measure()
    gb_s = traffic.total / 1e9 / (p50 / 1000)
    nominal = chips.bandwidth(chips.chip())
    return {
        "ms_per_frame": {
            "p50": round(p50, 2),
            "p95": round(p95, 2),
            "p99": round(p99, 2),
            "max": round(float(wall.max()), 2),
        },
        "host_ms_p50": round(float(np.median(times["host_ms"])), 2),
        "missed_80_ms": int((wall > FRAME_MS).sum()),
        "real_time_factor": round(float(wall.mean()) / FRAME_MS, 3),
        "bytes_per_frame": {**vars(traffic), "total": traffic.total},
        "gb_per_s": round(gb_s, 1),
        "fraction_of_bandwidth": None if nominal is None else round(gb_s / nominal, 3),
        "memory": vars(memory),
    }


def ring_bytes(session: Session) -> int:
    """Bytes of keys and values that a frame reads now. A GPU skips slots that are masked, unless they are packed."""
    trunk = session.state["lm"]["trunk"]
    total = sum(a.nbytes for a in dict(tree_flatten(trunk["layers"])).values())
    packed = isinstance(trunk["layers"][0], dict)
    if not device.on_gpu() or packed:
        return total
    return total * min(session.frames, transformer.capacity_of(trunk)) // transformer.capacity_of(trunk)


def parts(session: Session, sound: np.ndarray, steps: int) -> dict[str, float]:
    """Median ms of each part by itself; evaluated one by one they add up to a little more than the frame."""
    step, mimi, state = session.frame_step.step, session.mimi, session.state
    lm_state, given = state["lm"], step.clock.given
    pcm = mx.array(sound[0])[:, None]
    conditions = session.frame_step.conditions
    tree = None if conditions is None else conditions.tree()
    encode = mx.compile(lambda x, s: mimi.encode_chunk(x, s, max(given, 1)))
    decode = mx.compile(mimi.decode_chunk)
    samples: dict[str, list[float]] = {"encode": [], "temporal": [], "depth": [], "decode": []}

    def alone(name: str, call):
        start = time.perf_counter()
        out = call()
        mx.eval(out)
        samples[name].append(1000 * (time.perf_counter() - start))
        return out

    def temporal(codes):
        new, hidden, logits = step.temporal(lm_state, codes[:, :given, 0], tree, None)
        return new["trunk"]["position"], hidden, step.sample_text(lm_state, logits)

    for _ in range(steps):
        codes, _ = alone("encode", lambda: encode(pcm, state["encoder"]))
        _, hidden, text = alone("temporal", lambda: temporal(codes))  # noqa: B023
        if step.generated:
            audio = alone("depth", lambda: step.depth(lm_state, hidden, text))  # noqa: B023
            alone("decode", lambda: decode(audio[..., None], state["decoder"]))  # noqa: B023
    return {name: round(float(np.median(values)), 2) for name, values in samples.items() if values}


def show(figures: dict[str, Any]) -> None:
    ms, size, memory = figures["ms_per_frame"], figures["bytes_per_frame"], figures["memory"]
    table = Table(title=f"{figures['checkpoint']}, {figures['precision']}, batch {figures['batch']}", show_header=False)
    fraction = figures["fraction_of_bandwidth"]
    rows = [
        ("machine", f"{figures['chip']}, {figures['system']}, on the {figures['device']}"),
        ("versions", f"moshi_mlx {figures['moshi_mlx']}, mlx {figures['mlx']}, Python {figures['python']}, {figures['date']}"),
        ("load, first frame", f"{figures['load_s']} s, {figures['first_frame_s']} s"),
        ("ms per frame", f"p50 {ms['p50']}   p95 {ms['p95']}   p99 {ms['p99']}   max {ms['max']}"),
        *([("80 ms apart", f"p50 {cold['p50']}   p95 {cold['p95']}, as in a conversation")] if (cold := figures.get("cold_ms")) else []),
        ("by part, alone", "   ".join(f"{k} {v}" for k, v in figures["parts_ms"].items())),
        ("host", f"{figures['host_ms_p50']} ms of the model's thread"),
        ("missed 80 ms", f"{figures['missed_80_ms']} of {figures['steps']}, real-time factor {figures['real_time_factor']}"),
        ("read per frame", f"{gigabytes(size['total'])} ({gigabytes(size['rings'])} keys and values): {figures['gb_per_s']} GB/s"
            + ("" if fraction is None else f", {fraction:.0%} of the chip's bandwidth (4-bit products alone reach {BEST_FRACTION})")),
        ("memory", f"{gigabytes(memory['active'])} retained, {gigabytes(memory['peak'])} peak, {gigabytes(memory['physical'])} footprint"),
    ]  # fmt: skip
    if figures["thermal"]:
        rows.append(("heat", figures["thermal"]))
    for run in figures.get("language_model_alone", {}).values():
        rows.append((
            f"moshi_mlx {run['version']}, language model alone",
            f"load {run['load_s']} s, first codes {run['first_frame_s']} s, ms per frame p50 {run['p50']}   p95 {run['p95']}, "
            f"peak {gigabytes(run['peak'])}, resident {gigabytes(run['resident_peak'])}",
        ))  # fmt: skip
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)
    say("add your machine to benchmarks/README.md: --row prints its row")


def row(figures: dict[str, Any]) -> str:
    """The figures as a line of the table in benchmarks/README.md."""
    ms, fraction = figures["ms_per_frame"], figures["fraction_of_bandwidth"]
    cells = [
        figures["date"], f"{figures['chip']}, {figures['memory_bytes'] / 2**30:.0f} GB", figures["system"], figures["mlx"], figures["moshi_mlx"],
        f"{Path(figures['checkpoint']).name}, {figures['precision']}", figures["batch"], figures["steps"],
        f"{figures['load_s']} / {figures['first_frame_s']}", f"{ms['p50']} / {ms['p95']} / {ms['p99']} / {ms['max']}", figures["missed_80_ms"],
        figures["real_time_factor"], f"{figures['gb_per_s']}" + ("" if fraction is None else f" ({fraction:.0%})"),
        f"{gigabytes(figures['memory']['peak'])} / {gigabytes(figures['memory']['physical'])}", figures["thermal"] or "",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def draw(wall: list[float], path: Path, figures: dict[str, Any]) -> None:
    """Time of every frame against the moment it was spoken, and the deadline."""
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(10, 3.5))
    minutes = np.arange(len(wall)) * FRAME_MS / 60000
    axes.plot(minutes, wall, ".", markersize=1.5)
    axes.axhline(FRAME_MS, color="tab:red", linewidth=1)
    # Logarithmic, so that one late frame does not flatten the others.
    axes.set(xlabel="minutes of talk", ylabel="ms per frame", yscale="log")
    axes.set_title(f"{Path(figures['checkpoint']).name}, {figures['precision']}, {figures['chip']}", fontsize=9)
    figure.tight_layout()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    write_bytes(path, drawn.getvalue())
    plt.close(figure)


def _matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise InputError("--plot needs matplotlib: pip install matplotlib.") from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
