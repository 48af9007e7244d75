"""Rows that come and go: what a step of them costs beside a session alone, and recordings an hour where rows are filled again.

    python benchmarks/rows.py steps [--model DIR] [--rows 1 2 4 8] [--cpu]
    python benchmarks/rows.py files [--model DIR] [--rows 4] [--recordings 32] [--cpu]
    python benchmarks/rows.py waits [--rows 4] [--step-ms 40] [--seconds 20]

Without `--model` it is the model in the package for steps, and a small random one for recordings, whose lengths are drawn between 2 and
40 s, most of them short, as a folder of voice messages has them. What is compared takes turns in blocks.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import soundfile
from machine import add_step_arguments, add_wait_argument, describe_machine, wait_if_asked
from random_checkpoint import write

from moshi_mlx import checkpoint
from moshi_mlx.audio.files import AudioReader
from moshi_mlx.checkpoint.registry import DEMO_FOLDER
from moshi_mlx.engine.kind import Outcome
from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.engine.streams import Bounds, Stream, WhenFull
from moshi_mlx.session import Session
from moshi_mlx.session.conversations import Conversations, Talk
from moshi_mlx.speech_to_text.listener import Listener
from moshi_mlx.speech_to_text.recording import Surroundings
from moshi_mlx.speech_to_text.transcribe import CHUNK, FileTranscriber

FRAME = 1920


def noise(frames: int, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(frames * FRAME)).astype(np.float32)


def median(step, count: int, clock=time.perf_counter) -> float:
    seconds = []
    for _ in range(count):
        start = clock()
        step()
        seconds.append(clock() - start)
    return 1000 * float(np.median(seconds))


def steps(args: argparse.Namespace) -> None:
    """Every row has a frame in every step, the most expensive case; and one row of many, the least useful."""
    model = checkpoint.load(args.model or DEMO_FOLDER)
    session = Session(model)
    pcm = noise(1, 0)
    cases = {"session alone": lambda: session.step(pcm)}
    for count in args.rows:
        if count > 1:
            batch, heard = Session(model, batch=count), np.stack([pcm] * count)
            cases[f"{count} in lockstep"] = lambda batch=batch, heard=heard: batch.step(heard)
        rows = Conversations(model, count)
        for row in range(count):
            for _ in rows.join(row, Talk(seed=row)):
                pass
        everybody = dict.fromkeys(range(count), (pcm, False))
        cases[f"{count} rows, all"] = lambda rows=rows, given=everybody: rows.step(given)
        if count > 1:
            cases[f"{count} rows, one of them"] = lambda rows=rows: rows.step({0: (pcm, False)})
    for step in cases.values():
        median(step, 3)
    wait_if_asked(args)
    print(describe_machine())
    blocks = {name: [] for name in cases}
    for _ in range(args.blocks):
        for name, step in cases.items():
            blocks[name].append(median(step, args.steps, args.clock))
    alone = np.array(blocks["session alone"])
    for name, ms in blocks.items():
        ratio = np.array(ms) / alone
        print(
            f"{name:22} {np.median(ms):7.2f} ms, {np.median(ratio):5.2f} [{ratio.min():.2f}, {ratio.max():.2f}] of a session's"
        )


def files(args: argparse.Namespace) -> None:
    """Speech to text in rows that are filled again, and in lockstep, where all wait for the longest of them."""
    with tempfile.TemporaryDirectory() as folder:
        place = args.model
        if place is None:
            place = Path(folder) / "tiny-stt"
            write(place, "tiny-stt", None, seed=1)
        model = checkpoint.load(place)
        stt = model.config.stt
        around = Surroundings(stt.audio_delay_seconds, stt.audio_silence_prefix_seconds)
        seconds = np.clip(np.random.default_rng(0).lognormal(2.0, 0.8, args.recordings), 2, 40)
        paths = []
        for i, length in enumerate(seconds):
            paths.append(Path(folder) / f"{i}.wav")
            soundfile.write(paths[-1], noise(round(length * 12.5), i), 24000)
        count = args.rows[0]
        filled = FileTranscriber(Listener(model.lm, model.mimi, count), model.tokenizer, around)
        together = Listener(model.lm, model.mimi, count, own_clocks=False)
        ways = {
            "rows filled again": lambda: filled([AudioReader(p) for p in paths]),
            "lockstep": lambda: in_lockstep(together, paths, around),
        }
        for way in ways.values():
            way()
        wait_if_asked(args)
        print(describe_machine())
        print(
            f"{len(paths)} recordings of {seconds.min():.0f} to {seconds.max():.0f} s, {seconds.sum() / 60:.1f} min, {count} at once"
        )
        taken = {name: [] for name in ways}
        for _ in range(args.blocks):
            for name, way in ways.items():
                start = args.clock()
                way()
                taken[name].append(args.clock() - start)
        ratio = np.array(taken["lockstep"]) / np.array(taken["rows filled again"])
        for name, times in taken.items():
            print(f"{name:20} {3600 * len(paths) / np.median(times):9.0f} recordings an hour")
        print(f"ratio {np.median(ratio):.2f} [{ratio.min():.2f}, {ratio.max():.2f}]")


class Sleeper:
    """Rows whose steps take `seconds` of sleep: what the scheduler adds, on a machine that is busy otherwise."""

    bounds = Bounds(2.0, 256, WhenFull.DROP)

    def __init__(self, rows: int, seconds: float):
        self.rows, self.seconds = rows, seconds

    def join(self, row, options):
        yield

    def leave(self, row):
        pass

    def ready(self, row, inbox):
        return inbox.has_frame

    def collect(self, row, inbox):
        return inbox.frame()

    def step(self, given):
        time.sleep(self.seconds)
        return {row: Outcome([frame]) for row, frame in given.items()}


def waits(args: argparse.Namespace) -> None:
    """Live clients who send 80 ms every 80 ms, beside one who sends as fast as it is taken: how long a frame waits for its step."""
    print(describe_machine())
    with Scheduler(lambda: Sleeper(args.rows[0], args.step_ms / 1000)) as scheduler:
        streams = [scheduler.open() for _ in range(args.rows[0])]
        for stream in streams:
            stream.wait_open(60)
        late, *live = streams
        backlog = threading.Thread(target=upload, args=(late, args.seconds * 0.08 / (args.step_ms / 1000)))
        backlog.start()
        begin = time.perf_counter()
        for tick in range(round(args.seconds * 12.5)):
            for n, stream in enumerate(live):
                # Not in step with each other, as clients are.
                time.sleep(max(0.0, begin + (tick + (n + 1) / len(live)) * 0.08 - time.perf_counter()))
                stream.feed(noise(1, tick))
                while stream.read() is not None:
                    pass
            while late.read() is not None:
                pass
        backlog.join()
        figures, dropped = scheduler.figures(), sum(s.dropped_in for s in live) // 1920
        print(
            f"{args.rows[0]} rows, steps of {1000 * figures.p50:.1f} ms (longest {1000 * figures.longest:.1f}), {figures.steps} of them: "
            f"worst wait of a live frame {1000 * max(s.worst_wait for s in live):.1f} ms, {dropped} dropped"
        )


def upload(stream: Stream, seconds: float) -> None:
    """Sound as fast as it is taken."""
    for second in range(round(seconds)):
        stream.feed(noise(12, second), timeout=60)


def in_lockstep(listener: Listener, paths: list[Path], around: Surroundings) -> None:
    """As `stt --batch` did it: groups of recordings, each as long as its longest."""
    for at in range(0, len(paths), listener.batch):
        group = paths[at : at + listener.batch]
        heard = [np.concatenate(list(around.frames(AudioReader(p)))) for p in group]
        longest = -(-max(map(len, heard)) // (CHUNK * FRAME)) * CHUNK * FRAME
        pcm = np.zeros((listener.batch, longest), np.float32)
        for b, samples in enumerate(heard):
            pcm[b, : len(samples)] = samples
        listener.reset()
        listener.read([listener.start()])
        for start in range(0, longest, CHUNK * FRAME):
            listener.listen(pcm[:, start : start + CHUNK * FRAME])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "files", "waits"])
    parser.add_argument("--model", metavar="DIR")
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--step-ms", type=float, default=40.0, help="what a step takes, for waits")
    parser.add_argument("--seconds", type=float, default=20.0, help="of talk, for waits")
    parser.add_argument("--recordings", type=int, default=32)
    add_step_arguments(parser)
    add_wait_argument(parser)
    args = parser.parse_args()
    args.rows = args.rows or ([1, 2, 4, 8] if args.what == "steps" else [4])
    {"steps": steps, "files": files, "waits": waits}[args.what](args)


if __name__ == "__main__":
    main()
