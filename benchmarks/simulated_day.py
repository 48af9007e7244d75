"""A talk of 24 hours through the live loop, as fast as it goes: does anything grow, slow down, or lose its time?

    python benchmarks/simulated_day.py                                # the loop with a pass-through model
    python benchmarks/simulated_day.py --model least --minutes 25     # a small language model and codec, as far as it gets

The user asks the question of `examples/` again and again, with pauses of different lengths; nothing is paced, so the loop is the one of
`--input FILE --fast`. Every twelfth frame of the reply says its own number, which must come back as a word at that frame's
time. Now and then a line: medians of the step and of the whole frame, memory MLX holds, memory of the process.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import random_checkpoint
from machine import describe_machine

from moshi_mlx.audio.files import read_audio
from moshi_mlx.live.controls import Controls
from moshi_mlx.live.file_sides import FileSource, NoSink
from moshi_mlx.live.loop import LiveLoop
from moshi_mlx.live.sides import Talker
from moshi_mlx.machine import footprint
from moshi_mlx.session import Frame, Session

QUESTION = Path(__file__).resolve().parent.parent / "examples" / "question.wav"
FRAME, FRAME_RATE, MARK = 1920, 12.5, 12
FRAMES_PER_HOUR = 45_000
# The least that is a language model of streams and a codec with every part: days have many frames.
LEAST_LM = {
    **random_checkpoint.TINY_LM,
    "dim": 32, "num_heads": 2, "num_layers": 1, "context": 100, "card": 32, "n_q": 2, "dep_q": 1, "delays": [0, 0, 1],
    "depformer_dim": 16, "depformer_num_heads": 1, "depformer_dim_feedforward": 66,
}  # fmt: skip
LEAST_MIMI = {
    **random_checkpoint.TINY_MIMI,
    "seanet": {**random_checkpoint.TINY_MIMI["seanet"], "dimension": 16, "n_filters": 2},
    "transformer": {
        **random_checkpoint.TINY_MIMI["transformer"], "d_model": 16, "num_heads": 1, "num_layers": 1, "dim_feedforward": 32,
    },
    "quantizer": {"dimension": 8, "n_q": 2, "bins": 32},
}  # fmt: skip


class EndlessUser:
    """A recording of any length that is never in memory."""

    name, sample_rate = "the question, again and again", 24000

    def __init__(self, frames: int):
        self._count = frames
        speech = read_audio(QUESTION)
        self._speech = np.pad(speech, (0, -len(speech) % FRAME)).reshape(-1, FRAME)

    def frames(self, size: int) -> Iterator[np.ndarray]:
        silence, rng = np.zeros(size, np.float32), np.random.default_rng(0)
        at, pause = 0, 0
        for _ in range(self._count):
            if pause:
                pause -= 1
                yield silence
                continue
            yield self._speech[at]
            at += 1
            if at == len(self._speech):
                at, pause = 0, int(rng.integers(10, 200))

    def close(self) -> None:
        pass


class PassThrough:
    """Says what it hears."""

    def reset(self, seed: int | None = None) -> None:
        self.index = 0

    def step(self, pcm: np.ndarray) -> Frame:
        index, self.index = self.index, self.index + 1
        return Frame(pcm, "", 0, np.zeros(8, np.int32), index, index / FRAME_RATE)


@dataclass
class Figures:
    """Milliseconds per frame, and bytes, at one moment."""

    step: float
    frame: float
    active: int
    resident: int


@dataclass
class Day:
    """What came of it. `marks`: numbers said; `words`: those that came back; `wrong`: those with another time than theirs."""

    frames: int = 0
    marks: int = 0
    words: int = 0
    wrong: list[tuple[str, float, float]] = field(default_factory=list)
    figures: list[Figures] = field(default_factory=list)


class Marked:
    """A talker whose every twelfth frame says its number, and which measures itself."""

    def __init__(self, talker: Talker, day: Day, on_report: Callable[[np.ndarray, np.ndarray], None], every: int):
        self._talker, self._day, self._on_report, self._every = talker, day, on_report, every
        self._steps, self._frames = np.zeros(every), np.zeros(every)
        self._at, self._last = 0, time.perf_counter()
        talker.reset()

    def reset(self, seed: int | None = None) -> None:
        self._talker.reset(seed)

    def step(self, pcm: np.ndarray) -> Frame:
        begun = time.perf_counter()
        frame = self._talker.step(pcm)
        now = time.perf_counter()
        self._steps[self._at], self._frames[self._at] = now - begun, now - self._last
        self._at, self._last = (self._at + 1) % self._every, now
        if self._at == 0:
            self._on_report(self._steps, self._frames)
        if frame.time != frame.index / FRAME_RATE:
            self._day.wrong.append(("frame", frame.time, frame.index / FRAME_RATE))
        if frame.index % MARK:
            return frame
        self._day.marks += 1
        return replace(frame, text=f" {frame.index}")


def run(
    talker: Talker,
    hours: float,
    minutes: float = float("inf"),
    tell: Callable[[str], None] = print,
    every: float = 1.0,
) -> Day:
    """Talk for `hours`, or as far as `minutes` of real time go; figures `every` so many hours."""
    day, controls, end = Day(), Controls(), time.monotonic() + 60 * minutes

    def on_report(steps: np.ndarray, frames: np.ndarray) -> None:
        mx.clear_cache()
        memory = footprint.measure()
        now = Figures(1000 * np.median(steps), 1000 * np.median(frames), memory.active, memory.physical)
        day.figures.append(now)
        tell(
            f"{len(day.figures) * every:6.2f} h: step {now.step:.3f} ms, frame {now.frame:.3f} ms, "
            f"MLX {now.active / 1e6:.3f} MB, process {now.resident / 1e6:.1f} MB"
        )

    def hear(kind: str, **fields) -> None:
        if kind == "status" and time.monotonic() > end:
            controls.stop()
        number = re.match(r"\d+", fields["text"]) if kind == "word" else None
        if number:
            day.words += 1
            start = int(number[0]) / FRAME_RATE
            # The words' times are rounded to microseconds.
            if abs(fields["start"] - start) > 1e-6:
                day.wrong.append((fields["text"], fields["start"], start))

    source = FileSource(EndlessUser(round(hours * FRAMES_PER_HOUR)), FRAME)
    loop = LiveLoop(
        Marked(talker, day, on_report, round(every * FRAMES_PER_HOUR)), source, NoSink(), controls=controls, tell=hear
    )
    day.frames = loop.run().frames
    return day


def load(model: str) -> Talker:
    if model == "pass-through":
        return PassThrough()
    with tempfile.TemporaryDirectory() as folder:
        presets = {**random_checkpoint.PRESETS, "least": (LEAST_LM, LEAST_MIMI)}
        random_checkpoint.PRESETS.update(presets)
        random_checkpoint.write(Path(folder), model, None, seed=1)
        return Session.load(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=24.0, help="of talk (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of real time, at most")
    parser.add_argument("--every", type=float, default=1.0, help="hours of talk between figures (default: %(default)s)")
    parser.add_argument("--model", choices=["pass-through", "least", "tiny"], default="pass-through")
    args = parser.parse_args()
    print(describe_machine())
    begun = time.monotonic()
    day = run(load(args.model), args.hours, args.minutes, lambda line: print(line, flush=True), args.every)
    print(
        f"{args.model}: {day.frames} frames, {day.frames / FRAMES_PER_HOUR:.2f} h of talk in {(time.monotonic() - begun) / 60:.1f} minutes; "
        f"{day.words} of {day.marks} numbers heard, {len(day.wrong)} at a wrong time"
    )
    if len(day.figures) > 1:
        first, last = day.figures[0], day.figures[-1]
        print(
            f"from the first figures to the last: frame x {last.frame / first.frame:.3f}, MLX {last.active - first.active:+d} bytes, "
            f"process {(last.resident - first.resident) / 1e6:+.2f} MB"
        )


if __name__ == "__main__":
    main()
