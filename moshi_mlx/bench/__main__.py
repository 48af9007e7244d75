"""`python -m moshi_mlx.bench`: measure how fast a checkpoint runs on this machine: by part, with memory, bandwidth and missed deadlines."""

from __future__ import annotations

import argparse
import sys

from .. import commands
from ..checkpoint.published import DEMO_NAME


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(prog="python -m moshi_mlx.bench", description=__doc__)
    p.add_argument(
        "--steps",
        type=int,
        default=200,
        help="frames to run after the warm-up; 7500 are 10 minutes of conversation (default: %(default)s)",
    )
    p.add_argument("--warmup", type=int, default=10, help="frames to run first, not counted (default: %(default)s)")
    p.add_argument("--batch", type=int, default=1, help="conversations at once (default: %(default)s)")
    p.add_argument(
        "--real-time",
        action="store_true",
        help="start a frame every 80 ms, as in a conversation, instead of one after another",
    )
    p.add_argument(
        "--compare", metavar="PYTHON", help="interpreter with moshi_mlx 0.3.0 installed, to run on the same checkpoint"
    )
    output = p.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    output.add_argument("--row", action="store_true", help="print a row for the table in benchmarks/README.md instead")
    p.add_argument("--plot", metavar="PNG", help="draw the time of every frame (needs matplotlib)")
    p.add_argument("--no-compile", dest="compile", action="store_false", help="measure the uncompiled reference")
    p.add_argument(
        "--tune",
        action="store_true",
        help="try settings of MLX and of this package on this machine, each in its own process, and print the command line to use",
    )
    p.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)
    commands.add_checkpoint_arguments(p, demo=DEMO_NAME)
    commands.add_sampling_arguments(p)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from . import measure

    return measure.run(args, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    commands.run(main)
