"""Memory this process holds, as its operating system counts it, beside what MLX says."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Footprint:
    """Bytes. `active` and `peak` are MLX's own arrays, `resident_peak` the largest resident size.

    `physical` is what macOS charges the process (memory behind the GPU included, which resident size hides); resident size elsewhere.
    """

    active: int
    peak: int
    resident_peak: int
    physical: int


def measure() -> Footprint:
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return Footprint(mx.get_active_memory(), mx.get_peak_memory(), peak, _macos_physical() or _resident())


def _resident() -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as f:
            return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _macos_physical() -> int:
    """`ri_phys_footprint` of `proc_pid_rusage`, 0 where there is none."""
    if sys.platform != "darwin":
        return 0
    # struct rusage_info_v0: a UUID of 16 bytes, then 64-bit counters, the eighth of which is the footprint.
    info = (ctypes.c_uint64 * 32)()
    failed = ctypes.CDLL(None).proc_pid_rusage(os.getpid(), 0, ctypes.byref(info))
    return 0 if failed else int(info[2 + 7])
