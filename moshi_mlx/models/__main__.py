"""`python -m moshi_mlx.models`: the published checkpoints, their size and licence, and which fit this machine."""

from __future__ import annotations

import argparse

from .. import commands


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(prog="python -m moshi_mlx.models", description=__doc__)
    p.add_argument("name", nargs="?", help="show everything about one of them")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from ..commands import models

    return models.run(args)


if __name__ == "__main__":
    commands.run(main)
