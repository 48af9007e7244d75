"""Rows that come and go: what a step of them costs beside a session alone, and recordings an hour where rows are filled again.

    python benchmarks/rows.py steps [--model DIR] [--rows 1 2 4 8] [--cpu]
    python benchmarks/rows.py files [--model DIR] [--rows 4] [--recordings 32] [--cpu]

Without `--model` it is the model in the package for steps, and a small random one for recordings, whose lengths are drawn between 2 and
40 s, most of them short, as a folder of voice messages has them. What is compared takes turns in blocks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from machine import add_wait_argument, describe_machine, wait_if_asked
from random_checkpoint import write

from moshi_mlx import checkpoint
from moshi_mlx.audio.files import AudioReader
from moshi_mlx.checkpoint.registry import DEMO_FOLDER
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
    parser.add_argument("what", choices=["steps", "files"])
    parser.add_argument("--model", metavar="DIR")
    parser.add_argument("--rows", nargs="+", type=int)
    parser.add_argument("--recordings", type=int, default=32)
    parser.add_argument(
        "--cpu", dest="clock", action="store_const", const=time.process_time, default=time.perf_counter,
        help="processor time, for a busy machine without a GPU",
    )  # fmt: skip
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    add_wait_argument(parser)
    args = parser.parse_args()
    args.rows = args.rows or ([1, 2, 4, 8] if args.what == "steps" else [4])
    {"steps": steps, "files": files}[args.what](args)


if __name__ == "__main__":
    main()
