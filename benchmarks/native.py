"""`moshi-cli` beside `run_inference`: processor time of the start and of a frame, wall time to the first reply, peak memory. In turns, in one run.

    python -m moshi_mlx.export demo demo-folder
    python benchmarks/native.py build/cli/moshi-cli demo-folder --model demo [--frames 200] [--rounds 5]

Every run is a process of its own. The start is a run over one frame; a frame's time is what a long run takes more than that, by the number of frames
more. Medians, and the ratio round by round with its range.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from machine import add_wait_argument, describe_machine, wait_if_asked

FRAME, RATE = 1920, 24000


@dataclass(frozen=True)
class Run:
    """One process: seconds on the clock and on the processors, peak memory in MB."""

    wall: float
    cpu: float
    memory: float


def run(command: Sequence[str]) -> Run:
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Run(time.perf_counter() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale / 1e6)


def figures(command: Sequence[str], recordings: dict[int, str], output: str) -> dict[str, float]:
    """A round of one program over recordings of so many frames, a short one and a long one."""
    (few, many), runs = sorted(recordings), {}
    for frames, recording in recordings.items():
        runs[frames] = run([*command, recording, output, "--tail", "0"])
    frame = 1000 / (many - few)
    return {
        "start, wall s": runs[few].wall,
        "start, CPU s": runs[few].cpu,
        "frame, CPU ms": (runs[many].cpu - runs[few].cpu) * frame,
        "frame, wall ms": (runs[many].wall - runs[few].wall) * frame,
        "peak memory MB": runs[many].memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cli", help="the program that was built")
    parser.add_argument("folder", help="what was exported")
    parser.add_argument("--model", required=True, help="the checkpoint that it was exported from")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    add_wait_argument(parser)
    args = parser.parse_args()
    print(describe_machine())
    with tempfile.TemporaryDirectory() as place:
        sound = (0.1 * np.random.default_rng(0).standard_normal(args.frames * FRAME)).astype(np.float32)
        recordings = {}
        for frames in (1, args.frames):
            recordings[frames] = str(Path(place) / f"{frames}.wav")
            soundfile.write(recordings[frames], sound[: frames * FRAME], RATE, subtype="PCM_16")
        programs = {
            "library": [str(Path(args.cli).absolute()), args.folder],
            "Python": [sys.executable, "-m", "moshi_mlx.run_inference", "--model", args.model],
        }
        replies = {name: str(Path(place) / f"{name}.wav") for name in programs}
        # Once each for the system's caches.
        for name, command in programs.items():
            run([*command, recordings[1], replies[name]])
        wait_if_asked(args)
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in programs}
        for _ in range(args.rounds):
            for name, command in programs.items():
                rounds[name].append(figures(command, recordings, replies[name]))
        same = Path(replies["library"]).read_bytes() == Path(replies["Python"]).read_bytes()
    print(f"the same file: {'yes' if same else 'NO'}")
    print("| | library | Python | ratio |\n|---|---|---|---|")
    for figure in rounds["library"][0]:
        ours, theirs = (np.array([r[figure] for r in rounds[name]]) for name in ("library", "Python"))
        ratio = ours / theirs
        print(
            f"| {figure} | {np.median(ours):.3g} | {np.median(theirs):.3g} "
            f"| {np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}] |"
        )


if __name__ == "__main__":
    main()
