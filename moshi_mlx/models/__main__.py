"""`python -m moshi_mlx.models`: published checkpoints, their size and licence, and what fits this machine."""

from __future__ import annotations

import argparse

from .. import commands


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m moshi_mlx.models", description=__doc__)
    p.add_argument("name", nargs="?", help="tell all about one of them")
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from ..commands import models

    return models.run(args)


if __name__ == "__main__":
    commands.run(main)
