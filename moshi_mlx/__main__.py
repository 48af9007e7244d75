"""`python -m moshi_mlx`: the commands, one line each. Console scripts begin here too."""

from __future__ import annotations

import runpy
import signal
import sys
from collections.abc import Callable

from .errors import quit_at_once

COMMANDS = {
    "local": "talk with Moshi live, through microphone and loudspeaker",
    "local_web": "talk with Moshi in the browser, and serve its protocol",
    "serve": "talk, speech to text and text to speech for other programs",
    "run_inference": "answer or translate recordings",
    "stt": "transcribe recordings or the microphone",
    "run_tts": "speak text, to a file or the loudspeaker",
    "run_helium": "continue a text with Helium",
    "models": "list the published checkpoints and which fit this machine",
    "convert": "turn a published checkpoint into one folder, or back",
    "quantize": "pack a checkpoint into fewer bits",
    "export": "write a model as a folder that runs without Python",
    "voices": "make or list voices for PersonaPlex",
    "bench": "measure a frame on this machine, part by part",
}


def main() -> int:
    """Print the commands; a name that is none of them, or anything else typed, is told and is an error."""
    asked = [a for a in sys.argv[1:] if a not in ("-h", "--help")]
    if asked:
        known = asked[0] in COMMANDS
        hint = f"type python -m moshi_mlx.{asked[0]}" if known else "type python -m moshi_mlx for the commands"
        print(f"error: {asked[0]!r} is {'a module of its own' if known else 'no command'}; {hint}.", file=sys.stderr)
        return 2
    width = max(map(len, COMMANDS))
    for name, what in COMMANDS.items():
        print(f"python -m moshi_mlx.{name:{width}}  {what}")
    print("\nEach has --help. First try: python -m moshi_mlx.local --demo")
    return 0


def __getattr__(name: str) -> Callable[[], object]:
    """A console script: `moshi-local` is `moshi_mlx.__main__:local`, and does what `python -m moshi_mlx.local` does."""
    if name not in COMMANDS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def script() -> None:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # Until the command has been imported and takes over.
            signal.signal(signal.SIGINT, quit_at_once)
        runpy.run_module(f"moshi_mlx.{name}", run_name="__main__", alter_sys=True)

    return script


if __name__ == "__main__":
    sys.exit(main())
