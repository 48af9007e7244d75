"""`python -m moshi_mlx.run_inference IN [OUT]`: answer or translate a recording, as sound and text.

With a speech-to-text model and no OUT, the published way of transcribing, it does what `python -m moshi_mlx.stt IN` does.
"""

from __future__ import annotations

import argparse
import sys

from . import commands, stt
from .checkpoint.published import DEMO_FOLDER, DEMO_NAME
from .defaults import MOST_SECONDS, QUIET_SECONDS, TRANSLATION_SECONDS


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(prog="python -m moshi_mlx.run_inference", description=__doc__)
    p.add_argument(
        "files",
        nargs="*",
        metavar="IN [OUT]",
        help="input audio (- for standard input) and output audio (- for standard output); --demo alone answers a built-in question",
    )
    p.add_argument("--batch", metavar="DIR", help="answer all given files; replies go to DIR under the same names")
    p.add_argument(
        "--rows", type=int, default=8, metavar="N", help="with --batch: conversations at once (default: %(default)s)"
    )
    p.add_argument("--text", metavar="FILE", help="also write the reply's text to FILE")
    p.add_argument("--stereo", action="store_true", help="write the user on the left and the reply on the right")
    p.add_argument(
        "--json", action="store_true", help="print the text, words with times and figures as JSON instead of live text"
    )
    p.add_argument(
        "--tail",
        type=float,
        metavar="SECONDS",
        help="listen to exactly this much silence after the input, 0 for none (default: until the model has been silent for "
        f"{QUIET_SECONDS:.0f} s, at most {MOST_SECONDS:.0f} s; translations: until the model ends them, at most {TRANSLATION_SECONDS:.0f} s)",
    )
    p.add_argument(
        "--raw",
        nargs="?",
        type=commands.sample_rate,
        const=0,
        metavar="RATE",
        help="audio without a header: on standard output (24000 samples a second), and with RATE also the input",
    )
    commands.add_raw_format(p)
    p.add_argument("--no-compile", dest="compile", action="store_false", help="run without compiling")
    p.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    commands.add_checkpoint_arguments(p, demo=DEMO_NAME)
    commands.add_sampling_arguments(p)
    commands.add_prompt_arguments(p)
    return p


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    if not args.files:
        if args.model != str(DEMO_FOLDER) or args.batch is not None:
            p.error("the following arguments are required: IN [OUT]")
        args.files = [str(DEMO_FOLDER / "prompts" / "sum.flac")]
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    with commands.importing():
        from .commands import run_inference

    if run_inference.only_hears(args):
        return stt.main([a for a in (sys.argv[1:] if argv is None else argv) if a != "--verbose"])
    return run_inference.run(args)


if __name__ == "__main__":
    commands.run(main)
