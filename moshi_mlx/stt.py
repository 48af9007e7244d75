"""`python -m moshi_mlx.stt FILE...`: speech to text, from recordings or the microphone.

python -m moshi_mlx.stt talk.mp3                            # prints the text as it is recognised
python -m moshi_mlx.stt talk.mp3 -o talk.srt                # subtitles; also .vtt, .json (words with times), .txt
python -m moshi_mlx.stt *.wav --output-dir texts -f txt -f json --batch 8
python -m moshi_mlx.stt                                     # the microphone, until Ctrl-C
ffmpeg -i URL -f s16le -ar 16000 -ac 1 - | python -m moshi_mlx.stt --raw 16000 -     # a pipe, live
"""

from __future__ import annotations

import argparse

from . import commands
from .checkpoint.published import DEMO_STT_NAME
from .defaults import PAUSE_HEAD, PAUSE_THRESHOLD, STT_MODEL, TIMINGS, TRANSCRIPTS


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(
        prog="python -m moshi_mlx.stt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "files", nargs="*", metavar="FILE", help="recordings (- for standard input, live); without any, the microphone"
    )
    p.add_argument(
        "--raw", type=commands.sample_rate, metavar="RATE", help="audio without a header: RATE samples a second, mono"
    )
    commands.add_raw_format(p)
    out = p.add_argument_group("output")
    out.add_argument("-o", "--output", metavar="FILE", help="write to FILE, in the format its ending says")
    out.add_argument("--output-dir", metavar="DIR", help="write one file per recording and format to DIR")
    out.add_argument(
        "-f",
        "--format",
        dest="formats",
        action="append",
        choices=sorted(TRANSCRIPTS),
        help="format, repeatable with --output-dir (default: txt)",
    )
    out.add_argument(
        "--timing",
        choices=TIMINGS,
        default="offline",
        help="rule for word times in recordings (default: %(default)s)",
    )
    p.add_argument(
        "--batch", type=int, default=1, metavar="N", help="recordings transcribed at once (default: %(default)s)"
    )
    listening = p.add_argument_group("live")
    listening.add_argument("--input", metavar="FILE", help="listen to FILE as if it were the microphone")
    listening.add_argument("--input-device", metavar="NAME", help="microphone, by number or part of its name")
    listening.add_argument("--list-devices", action="store_true", help="list sound devices and exit")
    listening.add_argument("--times", action="store_true", help="show when each word began")
    listening.add_argument("--json", action="store_true", help="print one JSON object per word and turn")
    listening.add_argument(
        "--vad", action=argparse.BooleanOptionalAction, help="report ends of turns (default: if the model can)"
    )
    listening.add_argument(
        "--pause-head", type=int, default=PAUSE_HEAD, metavar="N", help="0: eager, 3: patient (default: %(default)s)"
    )
    listening.add_argument(
        "--pause-threshold", type=float, default=PAUSE_THRESHOLD, metavar="P", help="default: %(default)s"
    )
    listening.add_argument(
        "--no-flush", dest="flush", action="store_false", help="wait out the model's delay for the last words of a turn"
    )
    p.add_argument(
        "--temp",
        type=commands.temperature,
        help="temperature of the text, 0 for the most probable (default: the checkpoint's)",
    )
    prompt = p.add_argument_group("prompt (experimental)")
    prompt.add_argument("--prompt-audio", metavar="FILE", help="speech to hear first, to set spelling and style")
    prompt.add_argument("--prompt-text", metavar="TEXT", help="the first words, exactly as they are said")
    prompt.add_argument("--keep-prompt", action="store_true", help="keep the transcript of --prompt-audio")
    p.add_argument("--no-compile", dest="compile", action="store_false", help="run without compiling")
    commands.add_checkpoint_arguments(p, demo=DEMO_STT_NAME, default=STT_MODEL)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from .commands import stt

    return stt.run(args)


if __name__ == "__main__":
    commands.run(main)
