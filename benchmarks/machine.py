"""What a benchmark ran on, in one line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date

import mlx.core as mx


def describe_machine() -> str:
    load = os.getloadavg()[0]
    return (
        f"{date.today()}, {chip()}, {os.cpu_count()} cores, load {load:.1f}, {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, mlx {mx.__version__} on the {mx.default_device().type.name}"
    )


def chip() -> str:
    if sys.platform == "darwin":
        return subprocess.run(
            ["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True
        ).stdout.strip()
    with open("/proc/cpuinfo") as f:
        return next((line.split(":")[1].strip() for line in f if line.startswith("model name")), platform.processor())
