"""Apple chips and their nominal memory bandwidth: what a step that reads every weight cannot beat. Vendor figures, GB/s (1e9 bytes)."""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
import sys

BANDWIDTH = {
    "M1": 68, "M1 Pro": 200, "M1 Max": 400, "M1 Ultra": 800,
    "M2": 100, "M2 Pro": 200, "M2 Max": 400, "M2 Ultra": 800,
    "M3": 100, "M3 Pro": 150, "M3 Max": 400, "M3 Ultra": 819,
    "M4": 120, "M4 Pro": 273, "M4 Max": 546,
    "M5": 153,
}  # fmt: skip


# `OSThermalPressureLevel` of macOS.
_PRESSURE = {
    0: "nominal",
    1: "moderate pressure",
    2: "heavy pressure",
    3: "trapping pressure",
    4: "sleeping pressure",
}


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
    """What macOS says about heat: its pressure level, and the speed limit where there is one. None elsewhere."""
    if sys.platform != "darwin":
        return None
    pmset = subprocess.run(["pmset", "-g", "therm"], capture_output=True, text=True, check=False).stdout
    return describe_heat(_pressure(), pmset)


def describe_heat(pressure: int | None, pmset: str) -> str:
    """The pressure level (None: not known) and the answer of `pmset -g therm` in a few words."""
    said = []
    if pressure is not None:
        said.append(_PRESSURE.get(pressure, f"pressure level {pressure}"))
    limit = re.search(r"CPU_Speed_Limit\s*=\s*(\d+)", pmset)
    if limit and limit[1] != "100":
        said.append(f"limited to {limit[1]} % speed")
    return ", ".join(said) or "no limit recorded"


def _pressure() -> int | None:
    """The level macOS publishes to every process; Apple silicon reports heat this way and not by a speed limit."""
    system = ctypes.CDLL(None)
    token, level = ctypes.c_int(), ctypes.c_uint64()
    name = b"com.apple.system.thermalpressurelevel"
    if system.notify_register_check(name, ctypes.byref(token)) or system.notify_get_state(token, ctypes.byref(level)):
        return None
    system.notify_cancel(token)
    return level.value
