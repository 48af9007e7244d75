"""`python -m moshi_mlx.export MODEL DIR`: write a model as a folder that the library in `native/` runs without Python (docs/native.md)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .. import commands
from ..checkpoint.published import DEMO_NAME
from ..defaults import CODEBOOKS


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(prog="python -m moshi_mlx.export", description=__doc__)
    p.add_argument(
        "names",
        nargs="+",
        metavar="[MODEL] DIR",
        help="what to export: a checkpoint's folder, a short name or a Hub repository (or --model, --hf-repo, --demo), and the new folder",
    )
    p.add_argument("--codec", action="store_true", help="only the encoder and decoder of MODEL's codec, Mimi")
    p.add_argument(
        "--codebooks",
        type=int,
        metavar="K",
        help=f"codebooks of --codec (default: {CODEBOOKS})",
    )
    p.add_argument(
        "--capacities",
        type=_numbers,
        metavar="N,N",
        help="sizes of the key/value rings below the full window, in frames (default: 256, doubling); fewer make a smaller folder",
    )
    p.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a condition of the model (default for Hibiki: description=very_good)",
    )
    commands.add_checkpoint_arguments(p, demo=DEMO_NAME)
    group = p.add_argument_group("PersonaPlex")
    group.add_argument(
        "--voice", action="append", default=[], metavar="NAME|FILE", help="a voice to start with; repeatable"
    )
    group.add_argument(
        "--text-prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help='role of the model; "" for none; several may be given',
    )
    return p


def _numbers(text: str) -> list[int]:
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 256,1024") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    named = args.model is not None or args.hf_repo is not None
    if len(args.names) != (1 if named else 2):
        p.error("expected MODEL DIR" + (", of which MODEL is given by an option already" if named else ""))
    if not named:
        model = args.names[0]
        is_repository = "/" in model and not Path(model).exists() and not model.startswith((".", "/", "~"))
        args.model, args.hf_repo = (None, model) if is_repository else (model, None)
    args.directory = Path(args.names[-1])
    _check_codec(p, args)
    return args


# All that Mimi alone is asked for with.
_OF_CODEC = {"names", "model", "hf_repo", "codec", "codebooks", "directory"}


def _check_codec(p: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.codec and args.codebooks is not None:
        p.error("--codebooks belongs to --codec")
    odd = [n for n, value in vars(args).items() if n not in _OF_CODEC and value != p.get_default(n)]
    if args.codec and odd:
        p.error(f"--codec writes Mimi alone, which knows nothing of --{odd[0].replace('_', '-')}; leave it out")
    if args.codebooks is None:
        args.codebooks = CODEBOOKS


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    with commands.importing():
        from . import command

    return command.run(args, sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    commands.run(main)
