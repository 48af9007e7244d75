"""`python -m moshi_mlx.run_helium PROMPT`: continue a text, printed as it is generated."""

from __future__ import annotations

import argparse

from . import commands


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(prog="python -m moshi_mlx.run_helium", description=__doc__)
    p.add_argument("text", nargs="?", metavar="PROMPT", help="the beginning of the text (- for standard input)")
    p.add_argument("--prompt", help=argparse.SUPPRESS)
    p.add_argument(
        "--max-tokens", "--nsteps", type=_positive, default=200, help="tokens to generate (default: %(default)s)"
    )
    p.add_argument("--only-new", action="store_true", help="do not print the prompt")
    p.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    group = p.add_argument_group("checkpoint")
    group.add_argument(
        "--model", metavar="DIR|NAME", help="local folder, or a short name (helium-1-2b, helium-1-preview)"
    )
    group.add_argument("--hf-repo", metavar="REPO", help="Hub repository (default: kyutai/helium-1-preview-2b-mlx)")
    group.add_argument("--weights", metavar="FILE", help="weights in Kyutai's layout")
    group.add_argument("--tokenizer", metavar="FILE", help="sentencepiece model")
    group.add_argument("--quantize-bits", type=int, choices=[4, 8], help="pack the weights after loading")
    group.add_argument(
        "--quantize-group-size",
        type=int,
        choices=[32, 64, 128],
        default=64,
        help="weights that share a scale (default: %(default)s)",
    )
    group.add_argument("--save-quantized", metavar="FILE", help="also save the packed weights, in Kyutai's layout")
    group = p.add_argument_group("sampling")
    group.add_argument(
        "--temp", type=float, default=0.8, help="temperature, 0 for the most probable token (default: %(default)s)"
    )
    group.add_argument(
        "--top-p", type=float, default=0.95, help="probability mass to choose from (default: %(default)s)"
    )
    group.add_argument("--top-k", type=int, default=0, help="tokens to choose from, 0 for all (default: %(default)s)")
    group.add_argument("--greedy", action="store_true", help="always take the most probable token")
    group.add_argument("--seed", type=int, default=299792458, help="seed of the random draws (default: %(default)s)")
    return p


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from .commands import run_helium

    return run_helium.run(args)


if __name__ == "__main__":
    commands.run(main)
