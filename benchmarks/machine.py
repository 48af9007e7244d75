"""What a benchmark ran on, in one line."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from datetime import date

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
