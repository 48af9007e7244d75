"""The live program on real PortAudio and virtual devices: a long talk, a model that is too slow, latency.

    python benchmarks/live_devices.py soak --minutes 10     # losses of a talk in real time, with a small random checkpoint
    python benchmarks/live_devices.py slow                  # 100 ms per frame of 80: backlog and counted losses
    python benchmarks/live_devices.py latency               # a click that goes round through a pass-through model

Needs the Debian packages that `tests/virtual_audio.py` names, and an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import random_checkpoint
from machine import describe_machine

from moshi_mlx.audio.files import read_audio

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))
from live_talk import LOOP_BACK, PATIENCE, Talk, add_loop_back, round_trips, tone  # noqa: E402
from virtual_audio import VirtualAudio  # noqa: E402

QUESTION = ROOT / "examples" / "question.wav"
LOSSES = ("dropped_frames", "underruns", "device_errors")


def soak(audio: VirtualAudio, folder: Path, minutes: float) -> None:
    """A question every twenty seconds."""
    random_checkpoint.write(folder / "model", "tiny", None, seed=1)
    speech = read_audio(QUESTION)
    talk = Talk(
        audio.env, "--model", folder / "model", "--steps", round(minutes * 750), "--record", folder / "talk", talker=None
    )  # fmt: skip
    talk.running()
    next_line = 60.0
    while talk.process.poll() is None:
        audio.speak(speech).wait(PATIENCE)
        time.sleep(13)
        now = talk.of("status")[-1]
        if now["seconds"] >= next_line:
            print(line(now), flush=True)
            next_line += 60
    print(line(talk.end()))
    print("\n".join(talk.stderr.splitlines()[-2:-1]))


def slow(audio: VirtualAudio, folder: Path, minutes: float) -> None:
    talk = Talk(audio.env, "--steps", round(minutes * 600), "--echo-cancel", "off", talker="slow")
    talk.running()
    audio.speak(tone(300, 60 * minutes))
    end = talk.end()
    lags = [e["lag_ms"] for e in talk.of("status")]
    spoken = end["frames"] + end["dropped_frames"]
    print(line(end))
    print(f"backlog at most {max(lags):.0f} ms; {end['dropped_frames']} of {spoken} frames dropped")


def latency(audio: VirtualAudio, folder: Path, minutes: float) -> None:
    add_loop_back(audio)
    talk = Talk(audio.env, "--echo-cancel", "off", microphone=LOOP_BACK)
    talk.running()
    rounds = np.concatenate([round_trips(audio) for _ in range(max(1, round(minutes * 10)))])
    end = talk.stop()
    added = rounds - 80
    print(line(end))
    print(
        f"{len(rounds)} round trips, ms: median {np.median(rounds):.1f}, worst {rounds.max():.1f}; without the frame's 80: median "
        f"{np.median(added):.1f}, worst {added.max():.1f}; playback buffer {end['hold_ms']} ms"
    )


def line(figures: dict) -> str:
    step, heard = figures["step_ms"], figures["latency_ms"]
    losses = ", ".join(f"{figures[name]} {name.replace('_', ' ')}" for name in LOSSES)
    return (
        f"{figures['seconds']:6.1f} s: {losses}; step p50 {step['p50']} p95 {step['p95']} worst {step['worst']} ms; "
        f"latency p50 {heard['p50']} p95 {heard['p95']} worst {heard['worst']} ms; memory {figures['memory_mb']} MB"
    )


KINDS = {"soak": (soak, 10.0), "slow": (slow, 1.0), "latency": (latency, 0.5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--minutes", type=float, help="of talk (default: 10, 1 and half a minute)")
    args = parser.parse_args()
    print(describe_machine())
    measure, minutes = KINDS[args.kind]
    with tempfile.TemporaryDirectory() as name:
        audio = VirtualAudio(Path(name) / "audio")
        try:
            measure(audio, Path(name), args.minutes or minutes)
        finally:
            audio.stop()


if __name__ == "__main__":
    main()
