"""`python -m moshi_mlx.convert SRC DST`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from moshi_mlx import commands
from moshi_mlx.defaults import DTYPES, LAYOUTS


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """What `convert` and `quantize` both take."""
    parser.add_argument(
        "source", metavar="SRC", help="Hub repository, folder, file, or short name of a published model"
    )
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to make")
    group = parser.add_argument_group("source")
    group.add_argument("--lm-config", "--config", dest="config", metavar="FILE", help="config.json to use instead")
    group.add_argument("--mimi-weights", metavar="FILE", help="codec to use instead of the source's")
    group.add_argument("--tokenizer", metavar="FILE", help="tokenizer to use instead of the source's")
    group.add_argument("--lora", metavar="FILE", help="adapter of moshi-finetune to merge in")
    group.add_argument("--lora-scale", metavar="X", type=float, help="its scale (default: what its config.json says)")
    group.add_argument(
        "--keep-user-codebooks",
        action="store_true",
        help="PersonaPlex: keep the depth steps that predict the user and are never heard",
    )
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="type of dense weights (default: as stored)")
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        help="run source and result side by side and compare (default: for small models)",
    )
    parser.add_argument("--upload-repo", metavar="REPO", help="upload the result to this Hub repository")


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(
        prog="python -m moshi_mlx.convert",
        description="Convert a checkpoint of any published format into one folder that every command loads, or back.",
    )
    add_source_arguments(p)
    p.add_argument("--to", choices=LAYOUTS, default="mlx", help="layout to write (default: %(default)s)")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from moshi_mlx.convert import command

    return command.run(args, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    commands.run(main)
