"""`python -m moshi_mlx.local`: talk to Moshi through this machine's microphone and loudspeaker."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import commands
from .checkpoint.published import DEMO_NAME
from .defaults import ECHO_MODES, MOST_SECONDS, QUIET_SECONDS, TRANSLATION_SECONDS

if TYPE_CHECKING:
    from .live.sides import Talker


def parser() -> argparse.ArgumentParser:
    p = commands.Parser(prog="python -m moshi_mlx.local", description=__doc__)
    sound = p.add_argument_group("sound")
    sound.add_argument("--list-devices", action="store_true", help="list the sound devices and exit")
    sound.add_argument("--input-device", metavar="DEVICE", help="microphone, by number or part of its name")
    sound.add_argument("--output-device", metavar="DEVICE", help="loudspeaker, by number or part of its name")
    sound.add_argument(
        "--input-channel", type=int, metavar="N", help="use only the microphone's Nth channel, counting from 1"
    )
    sound.add_argument("--input", metavar="FILE", help="a recording in place of the microphone")
    sound.add_argument("--output", metavar="FILE", help="a file in place of the loudspeaker")
    sound.add_argument(
        "--raw",
        type=commands.sample_rate,
        metavar="RATE",
        help="--input has no header: RATE samples a second, mono",
    )
    commands.add_raw_format(sound)
    sound.add_argument("--fast", action="store_true", help="read --input as fast as the model can go")
    sound.add_argument(
        "--tail",
        type=float,
        metavar="SECONDS",
        help="listen to exactly this much silence after --input (default: until the model has been silent for "
        f"{QUIET_SECONDS:.0f} s, at most {MOST_SECONDS:.0f} s; translations: until the model ends them, at most {TRANSLATION_SECONDS:.0f} s)",
    )
    sound.add_argument(
        "--echo-cancel",
        choices=ECHO_MODES,
        help="aec: remove the loudspeaker's sound from the microphone; mute: hear nothing while Moshi speaks; off: for "
        "headphones (default: aec if livekit is installed)",
    )
    sound.add_argument("--noise-suppression", action="store_true", help="remove steady noise from the microphone")
    sound.add_argument("--auto-gain", action="store_true", help="bring the microphone to a steady level")
    sound.add_argument(
        "--max-lag",
        type=float,
        default=240.0,
        metavar="MS",
        help="how far your sound may queue up when the model is late; older sound is dropped (default: %(default)s)",
    )
    sound.add_argument(
        "--device-latency",
        type=float,
        default=40.0,
        metavar="MS",
        help="buffer requested from the sound devices (default: %(default)s)",
    )
    talk = p.add_argument_group("talk")
    talk.add_argument("--steps", type=int, metavar="N", help="end after N frames of 80 ms (default: no limit)")
    talk.add_argument("--record", metavar="DIR", help="record both sides and a timed transcript in a new folder")
    talk.add_argument("--json", action="store_true", help="print one line of JSON per event")
    talk.add_argument("--trace", metavar="FILE", help="write a Chrome trace of the loop")
    talk.add_argument(
        "--codec", choices=["mlx", "rust"], default="mlx", help="run the codec in MLX, or in rustymimi on the CPU"
    )
    talk.add_argument("--no-compile", dest="compile", action="store_false", help="run without compiling")
    talk.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    commands.add_checkpoint_arguments(p, demo=DEMO_NAME)
    commands.add_sampling_arguments(p)
    commands.add_prompt_arguments(p)
    return p


def main(argv: list[str] | None = None, make_talker: Callable[[argparse.Namespace], Talker] | None = None) -> int:
    """The command. `make_talker` puts something else in the model's place, made once the devices have been found."""
    args = parser().parse_args(argv)
    with commands.importing():
        from .commands import local

    return local.run(args, make_talker)


if __name__ == "__main__":
    commands.run(main)
