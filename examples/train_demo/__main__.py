"""One command from text to models that talk, write down and read aloud.

python -m examples.train_demo --out runs/demo --seed 1

Stages run in order and resume where they stopped; --stage runs one of them.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

from moshi_mlx import commands
from moshi_mlx.errors import InputError

from .stages import SETS, STAGES, packages


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(
        prog="python -m examples.train_demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the run")
    p.add_argument("--seed", type=int, default=1, help="of data and training (default: %(default)s)")
    p.add_argument("--stage", choices=STAGES, help="only this stage (default: all in order)")
    p.add_argument("--codec-from", type=Path, metavar="DIR", help="train this exported codec on")
    p.add_argument(
        "--go-on-from",
        type=Path,
        metavar="DIR",
        help="an earlier run's results: begin with those of its models that are there",
    )
    p.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    p.add_argument(
        "--seconds", type=_positive, metavar="S", help="time for each training stage; the learning rate falls to fit"
    )
    p.add_argument(
        "--scale", type=_positive, default=1.0, metavar="X", help="of the numbers of steps (default: %(default)s)"
    )
    p.add_argument("--no-graph", dest="graph", action="store_false", help="on a GPU, run every step anew")
    p.add_argument("--compile", action="store_true", help="compile the language models' trunks: fewer, larger kernels")
    p.add_argument("--workers", type=_some, default=os.cpu_count(), metavar="N", help="processes that synthesise")
    p.add_argument("--threads", type=_some, default=os.cpu_count(), metavar="N")
    data = p.add_argument_group("amount of data")
    for name, amount, what in (
        ("--speakers", 640, None),
        ("--left-out-speakers", 96, None),
        ("--sentences", 6000, "of each voice of text-to-speech"),
        ("--dialogues", 8000, None),
        ("--talks", 6000, "to write down"),
        ("--readings", 12_000, "for text-to-speech"),
        ("--channels", 2, "through which a dialogue and a talk are heard"),
        ("--trials", 60, "of every kind in the evaluation"),
    ):
        shown = "(default: %(default)s)"
        data.add_argument(name, type=_some, default=amount, metavar="N", help=f"{what} {shown}" if what else shown)
    data.add_argument("--sets", nargs="+", choices=SETS, help="of takes, only these")
    return p


def _some(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def main(argv: list[str] | None = None) -> None:
    args = parser().parse_args(argv)
    if args.codec_from and args.go_on_from:
        raise InputError("--go-on-from brings its own codec; leave out --codec-from.")
    for folder in (args.codec_from, args.go_on_from):
        if folder and not folder.is_dir():
            raise InputError(f"{folder} is no folder; expected what an earlier run or the package holds.")
    with commands.importing(), packages():
        from .run import run
    run(args)


if __name__ == "__main__":
    commands.run(main)
