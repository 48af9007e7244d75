"""Voices for PersonaPlex: one made of a recording, one freed of its pickle, or a list of those there are.

python -m moshi_mlx.voices me.wav me.safetensors --model personaplex     # a recording made into a voice
python -m moshi_mlx.voices NATF2.pt NATF2.safetensors                    # a published file without its pickle
"""

from __future__ import annotations

import argparse

from . import commands


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m moshi_mlx.voices", description="Make a small safetensors voice for PersonaPlex, or list voices."
    )
    p.add_argument(
        "source", nargs="?", help="a recording (0.4 s or more, some 10 s are best), a .pt file, or a voice's name"
    )
    p.add_argument("out", nargs="?", metavar="OUT.safetensors", help="the voice to write")
    p.add_argument("--list", action="store_true", help="list the voices of the checkpoint")
    p.add_argument(
        "--model", metavar="DIR", help="checkpoint whose codec and voices are used: a folder or a short name"
    )
    p.add_argument("--hf-repo", metavar="REPO", help="the same, as a Hub repository")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    from .commands import voices

    return voices.run(args)


if __name__ == "__main__":
    commands.run(main)
