"""`python -m moshi_mlx.quantize SRC DST`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moshi_mlx.convert.__main__ import add_source_arguments

from moshi_mlx import commands
from moshi_mlx.checkpoint.recipe_table import BITS_IN_WORDS, FLOAT_FORMS, RECIPES


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(
        prog="python -m moshi_mlx.quantize",
        description="Quantise a checkpoint of any published format, and report what that costs.",
    )
    add_source_arguments(p)
    group = p.add_argument_group("packing")
    group.add_argument("-q", "--bits", type=int, metavar="BITS", help=f"bits per weight: {BITS_IN_WORDS}")
    group.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="weights that share a scale: 32, 64 or 128 (default: 32 up to 4 bits, else 64)",
    )
    group.add_argument(
        "--mode",
        choices=["affine", *FLOAT_FORMS],
        default="affine",
        help="kind of numbers (default: %(default)s)",
    )
    group.add_argument(
        "--recipe",
        metavar="NAME",
        help=f"which layers: {', '.join(RECIPES)}, or a JSON file of rules (default: by kind of model)",
    )
    group.add_argument(
        "--budget", metavar="SIZE", help="mixed: size of the packed layers, such as 5.2GB, 900MB or 5bpw"
    )
    group.add_argument(
        "--codec-bits",
        type=int,
        choices=(4, 8),
        help="pack the codec's transformers too (only this package reads that)",
    )
    group = p.add_argument_group("report")
    group.add_argument("--report", metavar="FILE.json", type=Path, help="write the figures, with a picture beside them")
    group.add_argument("--no-picture", action="store_true", help="leave out the picture")
    group.add_argument(
        "--codes", metavar="FILE", help="compare on these codes [1 + n_q, frames] (safetensors, npz, npy)"
    )
    group.add_argument("--audio", metavar="FILE", help="compare on the source's answer to this recording")
    group.add_argument(
        "--frames", type=int, default=64, help="random frames to compare on without either (default: %(default)s)"
    )
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from moshi_mlx.quantize import command

    return command.run(args, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    commands.run(main)
