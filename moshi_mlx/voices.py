"""Voices for PersonaPlex: one made of a recording, one freed of its pickle, or a list of those there are.

python -m moshi_mlx.voices me.wav me.safetensors --model personaplex     # a recording made into a voice
python -m moshi_mlx.voices NATF2.pt NATF2.safetensors                    # a published file without its pickle
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .checkpoint import registry
from .checkpoint.places import Place, open_place
from .commands import refuse_overwriting, run
from .errors import InputError, clean
from .output import check_writable
from .session.voices import STORED, Voice, find_voice, load_codec, load_voice, voice_names


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
    p = parser()
    args = p.parse_args(argv)
    if args.list:
        for name in voice_names(_place(args)):
            print(clean(name))
        return 0
    if args.source is None or args.out is None:
        raise InputError("expected SOURCE and OUT.safetensors, or --list.")
    if Path(args.out).suffix != ".safetensors":
        raise InputError(f"{args.out} should end in .safetensors.")
    check_writable(args.out)
    refuse_overwriting(args, [args.out])
    voice = _make(args)
    voice.save(args.out)
    print(f"wrote {args.out}: {voice.frames} frames, {voice.frames / 12.5:.1f} s", file=sys.stderr)
    return 0


def _make(args: argparse.Namespace) -> Voice:
    path = Path(args.source)
    if path.suffix in STORED:
        return load_voice(path)
    place = _place(args)
    return find_voice(args.source, place, load_codec(place) if path.suffix else None)


def _place(args: argparse.Namespace) -> Place:
    if args.model is None and args.hf_repo is None:
        raise InputError("name the checkpoint whose codec and voices to use: --model personaplex, or a folder.")
    place = open_place(args.model, args.hf_repo)
    known = registry.by_repo(str(place))
    for line in [] if known is None else [f"{known.repo}, licence: {known.licence}", *registry.gating(known)]:
        print(clean(line), file=sys.stderr)
    return place


if __name__ == "__main__":
    run(main)
