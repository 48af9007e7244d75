"""What a benchmark ran on, in one line, and what several of them are given and print."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import mlx.core as mx

from moshi_mlx.machine.chips import chip


def describe_machine() -> str:
    load = os.getloadavg()[0]
    return (
        f"{date.today()}, {chip()}, {os.cpu_count()} cores, load {load:.1f}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, mlx {mx.__version__} on the {mx.default_device().type.name}"
    )


def add_wait_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--wait", action="store_true", help="prepare, then wait for a line on standard input before measuring"
    )


def wait_if_asked(args: argparse.Namespace) -> None:
    """A machine that is busy with other work has to be idle only while something is measured."""
    if args.wait:
        print("ready", flush=True)
        sys.stdin.readline()


def add_step_arguments(parser: argparse.ArgumentParser) -> None:
    """How steps are timed: `clock`, and `blocks` of `steps`."""
    parser.add_argument(
        "--cpu", dest="clock", action="store_const", const=time.process_time, default=time.perf_counter,
        help="processor time, for a busy machine without a GPU",
    )  # fmt: skip
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")


def add_trial_arguments(parser: argparse.ArgumentParser) -> None:
    """Trials of a demo model are drawn by a seed, and may be written down."""
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--json", metavar="FILE", help="also write the figures to FILE")


def tell(report: Any, path: str | None) -> None:
    """Figures on standard output, and in the file of `--json`."""
    text = json.dumps(report, indent=1)
    print(text)
    if path:
        Path(path).write_text(text + "\n")
