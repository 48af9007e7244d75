"""A long conversation of a small language model: steadiness, growth, memory, copies and traces.

    python benchmarks/long_run.py [--frames 50000] [--size toy]

Reported: p99 over p50 of the first 5,000 frames after the warm-up; medians early and at the end; memory MLX holds early and at the end; how many different
buffers the rings have lived in (1 per size, if every write was in place); how often the step was traced (once per size). Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import time

import mlx.core as mx
import numpy as np
from machine import add_wait_argument, describe_machine, wait_if_asked
from peers import CASES
from random_checkpoint import TINY_LM

from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.models.lm import Lm

SIZES = {"tiny": TINY_LM, "toy": CASES["toy-f32"][0], "small": CASES["small-f32"][0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50_000)
    parser.add_argument("--context", type=int, default=250, help="window in frames (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="tiny")
    add_wait_argument(parser)
    args = parser.parse_args()
    lm = Lm(CheckpointConfig.from_dict({**SIZES[args.size], "context": args.context}).lm)
    mx.eval(lm.parameters())
    traces = count_traces(lm)
    gen = LmGen(lm, seed=0)
    user = np.zeros((1, lm.cfg.other_codebooks), int)
    wait_if_asked(args)
    print(describe_machine())
    times, memory, buffers = [], {}, set()
    for i in range(args.frames):
        start = time.perf_counter()
        gen.step(user)
        np.array(gen.frame)
        times.append(1000 * (time.perf_counter() - start))
        buffers.add(np.asarray(memoryview(gen.state["trunk"]["layers"][0])).ctypes.data)
        if i in (100, args.frames - 1):
            mx.clear_cache()
            memory[i] = mx.get_active_memory()
    ms = np.array(times)
    steady = ms[100:5100]
    early, late = np.median(ms[100:1100]), np.median(ms[-1000:])
    print(
        f"p50 {np.percentile(steady, 50):.2f} ms, p99 {np.percentile(steady, 99):.2f} ms, ratio {np.percentile(steady, 99) / np.percentile(steady, 50):.2f}"
    )
    print(f"median of frames 100-1100 {early:.2f} ms, of the last 1000 {late:.2f} ms, ratio {late / early:.2f}")
    print(f"memory at frame 100 {memory[100]} bytes, at frame {args.frames - 1} {memory[args.frames - 1]} bytes")
    print(f"{len(buffers)} buffer(s) for the first ring, {traces['embed']} trace(s)")


def count_traces(lm: Lm) -> dict[str, int]:
    """A compiled step calls the model's Python code when it is traced, and only then."""
    counts = {"embed": 0}
    original = lm.embed

    def embed(tokens):
        counts["embed"] += 1
        return original(tokens)

    object.__setattr__(lm, "embed", embed)
    return counts


if __name__ == "__main__":
    main()
