"""`python -m moshi_mlx`: the commands, one line each."""

from __future__ import annotations

import sys

COMMANDS = {
    "local": "talk with Moshi live, through microphone and loudspeaker",
    "local_web": "talk with Moshi in the browser, and serve its protocol",
    "run_inference": "answer or translate recordings",
    "stt": "transcribe recordings or the microphone",
    "run_tts": "speak text, to a file or the loudspeaker",
    "run_helium": "continue a text with Helium",
    "models": "list the published checkpoints and which fit this machine",
    "convert": "turn a published checkpoint into one folder, or back",
    "quantize": "pack a checkpoint into fewer bits",
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


if __name__ == "__main__":
    sys.exit(main())
