"""Apple chips and their nominal memory bandwidth: what a step that reads every weight cannot beat. Vendor figures, GB/s (1e9 bytes)."""

from __future__ import annotations

import platform
import subprocess
import sys

BANDWIDTH = {
    "M1": 68, "M1 Pro": 200, "M1 Max": 400, "M1 Ultra": 800,
    "M2": 100, "M2 Pro": 200, "M2 Max": 400, "M2 Ultra": 800,
    "M3": 100, "M3 Pro": 150, "M3 Max": 400, "M3 Ultra": 819,
    "M4": 120, "M4 Pro": 273, "M4 Max": 546,
    "M5": 153,
}  # fmt: skip


def chip() -> str:
    """Name of this machine's processor."""
    if sys.platform == "darwin":
        out = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return out.stdout.strip().removeprefix("Apple ")
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.split(":", 1)[1].strip() for line in f if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def bandwidth(name: str) -> int | None:
    """Nominal GB/s of a chip by its name, None where it is not known."""
    return BANDWIDTH.get(name.removeprefix("Apple ").strip())


def thermal_state() -> str | None:
    """What macOS says about heat: the speed limit in per cent, or that none is recorded. None elsewhere."""
    if sys.platform != "darwin":
        return None
    return read_thermal(subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True, check=False).stdout)


def read_thermal(text: str) -> str:
    """The answer of `pmset -g therm` in a few words."""
    for line in text.splitlines():
        if "CPU_Speed_Limit" in line and "=" in line:
            limit = line.split("=", 1)[1].strip()
            return "no thermal limit" if limit == "100" else f"limited to {limit} % speed"
    return "no thermal limit"
