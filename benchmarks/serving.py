"""What a server's rows cost and how many a machine can have.

    python benchmarks/serving.py steps [--talk DIR] [--stt DIR] [--tts DIR] [--rows 1 2 4 8] [--cpu]
    python benchmarks/serving.py rows

`steps`: a step of all rows of a kind, every one of them busy, beside that of one row; and how many streams a second of compute serves in
real time. Without a folder each kind is a small random model. What is compared takes turns in blocks. `rows`: what `serve` chooses for
published models on Apple's chips, from their sizes and nominal bandwidth alone; nothing of it is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from machine import add_step_arguments, add_wait_argument, describe_machine, wait_if_asked
from random_checkpoint import write

from moshi_mlx import checkpoint
from moshi_mlx.checkpoint import registry
from moshi_mlx.engine.kind import Kind
from moshi_mlx.engine.streams import Inbox
from moshi_mlx.machine.capacity import Capacity
from moshi_mlx.machine.chips import BANDWIDTH
from moshi_mlx.machine.serving import rows_that_fit
from moshi_mlx.server import making
from moshi_mlx.session.conversations import Conversations, Talk
from moshi_mlx.speech_to_text.rows import Hear, Transcriptions
from moshi_mlx.text_to_speech.rows import Speak, Utterances
from moshi_mlx.text_to_speech.tts_model import TTSModel

FRAME, FRAME_MS = 1920, 80.0
# Chips with the memory that most of them are sold with, in GB; of it about three quarters are for the GPU.
SOLD = {
    "M1": 8,
    "M2": 16,
    "M3": 16,
    "M4": 16,
    "M1 Pro": 16,
    "M3 Pro": 18,
    "M4 Pro": 24,
    "M1 Max": 32,
    "M2 Max": 32,
    "M4 Max": 36,
    "M3 Ultra": 96,
}
FOR_THE_GPU = 0.75
# What is served together: names and bits.
SETS: dict[str, Sequence[tuple[str, int | None]]] = {
    "`stt-1b`": [("stt-1b", None)],
    "`tts-1.6b`": [("tts-1.6b", None)],
    "`stt-1b`, `tts-1.6b`": [("stt-1b", None), ("tts-1.6b", None)],
    "`moshiko` 4 bit": [("moshiko", 4)],
    "all three": [("moshiko", 4), ("stt-1b", None), ("tts-1.6b", None)],
}


class Busy:
    """A kind whose rows all have something for every step."""

    def __init__(self, kind: Kind, options, feed: Callable[[Inbox], None]):
        self.kind, self._feed = kind, feed
        self._inboxes = {row: Inbox(kind.bounds, threading.Condition()) for row in range(kind.rows)}
        for row in self._inboxes:
            for _ in kind.join(row, options):
                pass

    def step(self, clock: Callable[[], float]) -> float:
        """Milliseconds of the next step."""
        for inbox in self._inboxes.values():
            self._feed(inbox)
        begun = clock()
        self.kind.step({row: self.kind.collect(row, inbox) for row, inbox in self._inboxes.items()})
        return 1000 * (clock() - begun)


def hear(inbox: Inbox) -> None:
    inbox.feed(np.random.default_rng(0).uniform(-0.1, 0.1, FRAME).astype(np.float32))


def kinds(args: argparse.Namespace, folder: Path, rows: int) -> dict[str, Busy]:
    def load(name: str, preset: str):
        place = getattr(args, name)
        if place is None:
            place = folder / preset
            if not place.exists():
                write(place, preset, None, seed=1)
        return checkpoint.load(place)

    tts = load("tts", "tiny-tts")
    model = TTSModel.from_checkpoint(tts, n_q=tts.lm.dep_q, voice_repo=str(tts.files.moshi.parent / "voices"))
    voices = making.voices_of(tts.files, None, None, print)
    speak = Speak(
        seed=1, voices=(voices.known[voices.default],), cfg_coef=2.0 if model.valid_cfg_conditionings else None
    )
    return {
        "talk": Busy(Conversations(load("talk", "tiny"), rows), Talk(seed=1), hear),
        "speech to text": Busy(Transcriptions(load("stt", "tiny-stt"), rows), Hear(), hear),
        "text to speech": Busy(Utterances(model, rows, speak), speak, making.read_aloud),
    }


def steps(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = {rows: kinds(args, Path(folder), rows) for rows in args.rows}
        for each in made.values():
            for busy in each.values():
                for _ in range(8):
                    busy.step(args.clock)
        wait_if_asked(args)
        print(describe_machine())
        for name in made[args.rows[0]]:
            blocks: dict[int, list[float]] = {rows: [] for rows in args.rows}
            for _ in range(args.blocks):
                for rows, each in made.items():
                    blocks[rows].append(float(np.median([each[name].step(args.clock) for _ in range(args.steps)])))
            first = np.array(blocks[args.rows[0]])
            for rows, ms in blocks.items():
                ratio, median = np.array(ms) / first, float(np.median(ms))
                print(
                    f"{name:14} {rows} rows: {median:6.2f} ms a step, {np.median(ratio):5.2f} [{ratio.min():.2f}, {ratio.max():.2f}] of one row's; "
                    f"{rows * FRAME_MS / median:6.1f} streams a second of compute"
                )


def rows_of(chip: str, memory: float, models: Sequence[tuple[str, int | None]]) -> int:
    """What `serve` would choose there, up to 32."""
    costs = [registry.by_name(name, bits).cost for name, bits in models]
    return rows_that_fit(costs, Capacity(round(memory * FOR_THE_GPU * 1e9), BANDWIDTH[chip], False), most=32)


def table() -> list[str]:
    """Rows of each model by chip, as a table in Markdown."""
    lines = [f"| chip, memory | {' | '.join(SETS)} |", "|---" * (len(SETS) + 1) + "|"]
    for chip, memory in SOLD.items():
        cells = [str(rows_of(chip, memory, models) or "–") for models in SETS.values()]
        lines.append(f"| {chip}, {memory} GB | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "rows"])
    for flag in ("--talk", "--stt", "--tts"):
        parser.add_argument(flag, metavar="DIR")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8])
    add_step_arguments(parser)
    add_wait_argument(parser)
    args = parser.parse_args()
    if args.what == "rows":
        print("\n".join(table()))
    else:
        steps(args)


if __name__ == "__main__":
    main()
