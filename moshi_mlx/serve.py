"""`python -m moshi_mlx.serve`: talk, speech to text and text to speech for other programs, on one port.

    python -m moshi_mlx.serve --stt --tts                 # for Unmute and the scripts of delayed-streams-modeling
    python -m moshi_mlx.serve --stt stt-2.6b --rows 4     # any model by its name or folder
    python -m moshi_mlx.serve --talk --stt --tts          # everything, the page included

Which program connects how: docs/server.md.
"""

from __future__ import annotations

import argparse

from . import commands
from .checkpoint.published import DEFAULT_NAME
from .defaults import STT_MODEL, TTS_MODEL

# What each kind is by default, and what it is called.
KINDS = {
    "talk": (DEFAULT_NAME, "talk with it, over /api/chat and the page"),
    "stt": (STT_MODEL, "speech to text"),
    "tts": (TTS_MODEL, "text to speech"),
}


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(
        prog="python -m moshi_mlx.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = p.add_argument_group("models", "one or more of three, each a folder or a short name")
    for kind, (default, what) in KINDS.items():
        models.add_argument(
            f"--{kind}", nargs="?", const=default, metavar="NAME", help=f"{what} (without a name: {default})"
        )
    models.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="clients of each kind served at once (default: what this machine can, up to 8)",
    )
    models.add_argument("--voice", metavar="NAME|FILE", help="the voice of who names none that is known")
    models.add_argument(
        "--voice-repo",
        metavar="REPO",
        help="folder or Hub repository of voices (default: the checkpoint's, else Kyutai's)",
    )
    models.add_argument("--seed", type=int, help="seed of every talk (default: another for each)")
    models.add_argument("--no-compile", dest="compile", action="store_false", help="run every operation by itself")
    commands.add_server_arguments(p.add_argument_group("server"))
    commands.add_precision_arguments(p.add_argument_group("memory"))
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from .commands import serve

    return serve.run(args)


if __name__ == "__main__":
    commands.run(main)
