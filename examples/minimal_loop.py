"""The whole of embedding Moshi: 80 ms of sound in, 80 ms of sound and perhaps a word out, again and again.

    python examples/minimal_loop.py moshi_mlx/demo/prompts/sum.flac reply.wav --model demo

Any source and any sink of sound will do in place of the two files; python -m moshi_mlx.local is this loop with devices.
"""

from __future__ import annotations

import argparse

from moshi_mlx import commands
from moshi_mlx.audio.files import AudioReader, AudioWriter
from moshi_mlx.session import Session


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--model", help="checkpoint folder or short name")
    args = parser.parse_args(argv)

    session = Session.load(model=args.model)
    with AudioReader(args.input) as reader, AudioWriter(args.output) as writer:
        for pcm in reader.frames(session.frame_size):
            frame = session.step(pcm)
            writer.write(frame.pcm)
            print(frame.text, end="", flush=True)
        writer.commit()
    print()
    return 0


if __name__ == "__main__":
    commands.run(main)
