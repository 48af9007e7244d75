"""One conversation, several ways on: a session's state is a value that can be kept and given to another seed.

    python examples/fork.py question.wav replies --model path/to/folder --forks 3

The question is heard once; each fork answers it with draws of its own. The first is then told again from the kept state, to
show that it is the same to the last bit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx import commands
from moshi_mlx.audio.files import AudioReader, AudioWriter
from moshi_mlx.session import Session


def with_seed(state: dict, seed: int) -> dict:
    """The same moment, from which other things will be said."""
    return {**state, "lm": {**state["lm"], "seed": mx.array([seed], mx.uint32)}}


def go_on(session: Session, state: dict, frames: int) -> tuple[np.ndarray, str]:
    """Listen to silence from `state` on: the sound `[frames * 1920]` and the words of the answer."""
    session.state = state
    silence = np.zeros(session.frame_size, np.float32)
    said = [session.step(silence) for _ in range(frames)]
    return np.concatenate([f.pcm for f in said]), "".join(f.text for f in said)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", help="checkpoint folder or short name")
    parser.add_argument("--forks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each answer (default: %(default)s)")
    args = parser.parse_args(argv)

    session = Session.load(model=args.model)
    args.folder.mkdir(parents=True, exist_ok=True)
    with AudioReader(args.question) as reader:
        for pcm in reader.frames(session.frame_size):
            session.step(pcm)
    heard = session.state
    frames = round(args.seconds * 12.5)
    answers = [go_on(session, with_seed(heard, seed), frames) for seed in range(args.forks)]
    for i, (pcm, text) in enumerate(answers):
        with AudioWriter(args.folder / f"answer-{i}.wav") as writer:
            writer.write(pcm)
            writer.commit()
        print(f"{i}: {text.strip()}")
    again, _ = go_on(session, with_seed(heard, 0), frames)
    same = np.array_equal(again, answers[0][0])
    print(f"the first answer told again is {'the same' if same else 'DIFFERENT'}")
    return 0 if same else 1


if __name__ == "__main__":
    commands.run(main)
