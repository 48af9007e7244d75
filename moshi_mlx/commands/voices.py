"""The work of `python -m moshi_mlx.voices`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..checkpoint import registry
from ..checkpoint.places import Place, open_place
from ..errors import InputError, clean
from ..output import check_writable
from ..session.voices import STORED, Voice, find_voice, load_codec, load_voice, voice_names
from .flags import refuse_overwriting


def run(args: argparse.Namespace) -> int:
    """The command."""
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
