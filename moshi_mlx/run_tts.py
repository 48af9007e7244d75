"""`python -m moshi_mlx.run_tts TEXT OUT`: text to speech.

    python -m moshi_mlx.run_tts "Hello there." hello.wav
    python -m moshi_mlx.run_tts speech.txt speech.wav
    python -m moshi_mlx.run_tts --text "Hello there." hello.wav --voice expresso/ex03-ex01_happy_001_channel1_334s.wav
    some-language-model | python -m moshi_mlx.run_tts -          # spoken on the loudspeaker as it is written
    python -m moshi_mlx.run_tts speech.txt - | player            # a wav on standard output, as it is made
    python -m moshi_mlx.run_tts scene.txt scene.flac --dialogue --voice A --voice B     # one line, one turn
    python -m moshi_mlx.run_tts requests.jsonl --out-folder out  # lines {"turns": [...], "voices": [...], "id": "..."}

Write pauses as <break time="1.5s"/>, <break time="500ms"/> or <break strength="strong"/>.
"""

from __future__ import annotations

import argparse

from . import commands
from .checkpoint.published import DEMO_TTS_NAME
from .defaults import TRANSCRIPTS, TTS_GUIDANCE, TTS_MODEL, TTS_TEMPERATURE, VOICE, VOICE_REPO


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(
        prog="python -m moshi_mlx.run_tts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "files",
        nargs="*",
        metavar="TEXT [OUT]",
        help="the text, or a file with it (- for standard input, .jsonl for requests); then a sound file, or - for standard output "
        "(without it: the loudspeaker)",
    )
    p.add_argument("--text", help="the text, even if a file has that name")
    p.add_argument("-o", "--output", metavar="FILE", help="the same as OUT")
    p.add_argument(
        "--raw", action="store_true", help="write to standard output without a header: mono, 24000 samples a second"
    )
    commands.add_raw_format(p)
    p.add_argument("--dialogue", action="store_true", help="every line is a turn, two speakers alternate")
    p.add_argument(
        "--voice",
        action="append",
        help=f"voice: a name in the voice repository or a local file; twice for a dialogue (default: {VOICE}, or the first of a folder without it)",
    )
    p.add_argument(
        "--voice-repo",
        metavar="REPO",
        help=f"Hub repository or folder of voices (default: the folder voices of the model, else {VOICE_REPO})",
    )
    p.add_argument(
        "--subtitles", metavar="FILE", help=f"also write the words with their times (.{', .'.join(TRANSCRIPTS)})"
    )
    p.add_argument("--json", action="store_true", help="print words with times and figures as JSON")
    p.add_argument(
        "--max-seconds", type=float, metavar="S", help="stop after this much speech, even if the text is not finished"
    )
    p.add_argument("--output-device", metavar="NAME", help="loudspeaker, by number or part of its name")
    p.add_argument("--list-devices", action="store_true", help="list sound devices and exit")
    p.add_argument("--no-compile", dest="compile", action="store_false", help="run without compiling")
    many = p.add_argument_group("requests")
    many.add_argument(
        "--out-folder", default="tts-outputs", metavar="DIR", help="where the answers go (default: %(default)s)"
    )
    many.add_argument(
        "--only-wav", action="store_true", help="leave out the .safetensors with codes and the .json with figures"
    )
    many.add_argument(
        "--batch", type=int, default=1, metavar="N", help="requests spoken at once (default: %(default)s)"
    )
    speech = p.add_argument_group("speech")
    speech.add_argument(
        "--nq", type=int, help="codebooks to generate; fewer are faster but sound worse (default: the model's)"
    )
    speech.add_argument(
        "--padding-bonus", type=float, default=0.0, help="speed, from -2 (fast) to 2 (slow) (default: %(default)s)"
    )
    speech.add_argument(
        "--padding-between",
        type=int,
        default=1,
        metavar="STEPS",
        help="steps after each word, for clearer speech (default: %(default)s)",
    )
    speech.add_argument(
        "--max-padding",
        type=int,
        default=8,
        metavar="STEPS",
        help="longest pause the model may make (default: %(default)s)",
    )
    speech.add_argument(
        "--initial-padding",
        type=int,
        default=2,
        metavar="STEPS",
        help="steps before the first word (default: %(default)s)",
    )
    speech.add_argument(
        "--final-padding", type=int, default=4, metavar="STEPS", help="steps after the last word (default: %(default)s)"
    )
    speech.add_argument(
        "--quantize",
        dest="quantized",
        type=int,
        choices=[4, 8],
        help="the same as -q: packs dense weights while they load",
    )
    commands.add_checkpoint_arguments(p, demo=DEMO_TTS_NAME, default=TTS_MODEL)
    commands.add_sampling_arguments(p, temp=str(TTS_TEMPERATURE))
    p.set_defaults(cfg_coef=TTS_GUIDANCE)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    with commands.importing():
        from .commands import run_tts

    return run_tts.run(args)


if __name__ == "__main__":
    commands.run(main)
