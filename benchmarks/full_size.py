"""Load time, time to first frame, ms per frame and peak memory of a checkpoint's language model, beside the published `moshi_mlx` 0.3.0.

    python benchmarks/full_size.py --model DIR --published /path/to/other/venv/bin/python [--rounds 2] [--steps 5] [--cold]

Every run is a fresh process; the two packages take turns. Both start with the file in the system's cache, or, with --cold (Linux), without it.
Time counts from the start of the script, imports included: until the weights are loaded, the first step is done and the first audio codes
are there. A frame is: user codes in, text and audio codes out as host values; sampled with top-k 25 and 250, activations float32 on a CPU
and bfloat16 on a GPU in both.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from machine import add_wait_argument, describe_machine, wait_if_asked

from moshi_mlx.bench import peer
from moshi_mlx.checkpoint import files as checkpoint_files


def forget(path: Path) -> None:
    """Drop a file from the system's cache."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def read(path: Path) -> None:
    """Have a file in the system's cache."""
    with path.open("rb", buffering=0) as f:
        while f.read(64 << 20):
            pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--published", metavar="PYTHON", required=True)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="drop the file from the system's cache before every run")
    add_wait_argument(parser)
    args = parser.parse_args()
    files = checkpoint_files.locate(args.model)
    read(files.moshi)
    wait_if_asked(args)
    print(f"{describe_machine()}; {files.moshi.stat().st_size / 1e9:.3f} GB, {'cold' if args.cold else 'cached'}")
    runs: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for _ in range(args.rounds):
        for who in runs:
            if args.cold:
                forget(files.moshi)
            if who == "ours":
                run = peer.measure_ours(files, args.steps)
            else:
                run = peer.measure_published(args.published, files, args.steps)
            runs[who].append(run)
            print(who, run, flush=True)
    for name in ("load_s", "first_step_s", "first_frame_s", "p50", "peak", "resident_peak"):
        a, b = (float(np.median([r[name] for r in runs[who]])) for who in runs)
        print(f"{name:14} {a:.6g} / {b:.6g} = {a / b:.3f}")


if __name__ == "__main__":
    main()
