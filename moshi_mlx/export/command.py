"""The work of `python -m moshi_mlx.export`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import mlx.core as mx

from ..checkpoint.places import open_place
from ..commands.flags import TALKERS
from ..commands.loading import load
from ..commands.telling import say
from ..errors import InputError
from ..machine.memory import gigabytes
from ..session.voices import load_codec
from .folder import check_destination, write
from .function import MLX_VERSION
from .plans import of_codec, of_model


def run(args: argparse.Namespace, typed: Sequence[str]) -> int:
    """The command; `typed` are its arguments as they were, for the folder's record."""
    conditions = _conditions(args.condition)
    check_destination(args.directory)
    command = ["python", "-m", "moshi_mlx.export", *typed]
    if args.codec:
        place = open_place(args.model, args.hf_repo)
        plan = of_codec(load_codec(place, args.codebooks), str(place), place.licence(), command)
    else:
        loaded = load(args, kinds=(*TALKERS, "stt"))
        plan = of_model(
            loaded, command, kv_bits=args.kv_bits, conditions=conditions, capacities=args.capacities, voices=args.voice,
            text_prompt=args.text_prompt,
        )  # fmt: skip
    write(plan, args.directory)
    size = sum(f.stat().st_size for f in args.directory.iterdir())
    device = mx.default_device().type.name
    say(f"wrote {args.directory}, {gigabytes(size)}, for the {device} by MLX {MLX_VERSION}")
    return 0


def _conditions(given: Sequence[str]) -> dict[str, str]:
    pairs = [condition.partition("=") for condition in given]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(f"a condition is given as NAME=VALUE, found {name + equals + value!r}.")
    return {name: value for name, _, value in pairs}
