"""Voices for PersonaPlex: one made of a recording, one freed of its pickle, or a list of those there are.

python -m moshi_mlx.voices me.wav me.safetensors --model personaplex     # a recording made into a voice
python -m moshi_mlx.voices NATF2.pt NATF2.safetensors                    # a published file without its pickle
"""

from __future__ import annotations

import argparse

from . import commands


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(
        prog="python -m moshi_mlx.voices",
        description="Make a voice for PersonaPlex, as a small safetensors file, or list voices.",
    )
    p.add_argument(
        "source", nargs="?", help="a recording (at least 0.4 s, best about 10 s), a .pt file, or the name of a voice"
    )
    p.add_argument("out", nargs="?", metavar="OUT.safetensors", help="the voice to write")
    p.add_argument("--list", action="store_true", help="list the voices of the checkpoint")
    p.add_argument("--model", metavar="DIR", help="checkpoint with the codec and voices: a folder or a short name")
    p.add_argument("--hf-repo", metavar="REPO", help="the same, as a Hub repository")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from .commands import voices

    return voices.run(args)


if __name__ == "__main__":
    commands.run(main)
