"""`python -m moshi_mlx.local_web`: Moshi in the browser, and a server for other programs that speak its protocol."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import commands
from .checkpoint.published import DEMO_NAME

if TYPE_CHECKING:
    from .engine.kind import Kind


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(prog="python -m moshi_mlx.local_web", description=__doc__)
    server = p.add_argument_group("server")
    commands.add_server_arguments(server)
    server.add_argument("--no-browser", action="store_true", help="do not open the page")
    server.add_argument(
        "--rows", type=int, default=1, metavar="N", help="conversations at the same time (default: %(default)s)"
    )
    server.add_argument(
        "--record", metavar="DIR", help="record every conversation, each in its own folder; the page says so"
    )
    server.add_argument(
        "--steps", type=int, metavar="N", help="accepted and ignored: conversations have no fixed length"
    )
    server.add_argument("--no-compile", dest="compile", action="store_false", help="run without compiling")
    commands.add_checkpoint_arguments(p, demo=DEMO_NAME)
    commands.add_sampling_arguments(p, seed=None)
    commands.add_prompt_arguments(p)
    return p


def main(argv: list[str] | None = None, wrap: Callable[[Kind], Kind] = lambda kind: kind) -> int:
    """The command. `wrap` puts something around the model, on its thread."""
    args = parser().parse_args(argv)
    with commands.importing():
        from .commands import local_web

    return local_web.run(args, wrap)


if __name__ == "__main__":
    commands.run(main)
