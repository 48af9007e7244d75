"""How much memory there is, and how much a checkpoint will take."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from ..config.parts import TransformerConfig
from ..errors import CheckpointError

# Slack for activations, kernels and Python itself.
OVERHEAD_BYTES = 250_000_000


def total_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Memory this process could still get without swapping: the machine's, its container's or its own limit."""
    limits = [_system_available()]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(max(0, soft - _own_virtual()))
    limits.extend(_container_available())
    return min(limits)


def _system_available() -> int:
    if sys.platform == "darwin":
        return (
            _vm_stat(subprocess.run(["vm_stat"], capture_output=True, text=True, check=False).stdout) or total_bytes()
        )
    found = re.search(r"MemAvailable:\s+(\d+) kB", _read("/proc/meminfo"))
    swap = re.search(r"SwapFree:\s+(\d+) kB", _read("/proc/meminfo"))
    if not found:
        return total_bytes()
    return 1024 * (int(found[1]) + (int(swap[1]) if swap else 0))


def _vm_stat(text: str) -> int:
    """Free, inactive, speculative and purgeable pages of macOS' `vm_stat`, in bytes."""
    page = re.search(r"page size of (\d+) bytes", text)
    kinds = re.findall(r"Pages (?:free|inactive|speculative|purgeable):\s+(\d+)", text)
    return int(page[1]) * sum(map(int, kinds)) if page else 0


def _container_available() -> list[int]:
    limit, used = _read("/sys/fs/cgroup/memory.max").strip(), _read("/sys/fs/cgroup/memory.current").strip()
    if not limit.isdigit() or not used.isdigit():
        return []
    # Files that were read or downloaded count as used; the kernel gives them up where something else wants the room.
    cached = sum(map(int, re.findall(r"^(?:in)?active_file (\d+)$", _read("/sys/fs/cgroup/memory.stat"), re.MULTILINE)))
    return [max(0, int(limit) - max(0, int(used) - cached))]


def _own_virtual() -> int:
    pages = _read("/proc/self/statm").split()
    return int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def ring_bytes(cfg: TransformerConfig, batch: int, dtype: mx.Dtype) -> int:
    """Keys and values of a full window."""
    positions = cfg.context or 4096
    return 2 * batch * cfg.num_layers * cfg.kv_heads * cfg.head_dim * positions * dtype.size


def module_bytes(module: nn.Module) -> int:
    """Bytes of all parameters, shared ones once."""
    return sum({id(p): p.nbytes for p in dict(tree_flatten(module.parameters())).values()}.values())


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e8 else f"{n / 1e6:.1f} MB"


def device_bytes() -> int:
    """What the system recommends a GPU to use, or the machine's memory where MLX knows no such figure."""
    limit = mx.device_info().get("max_recommended_working_set_size")
    return limit if isinstance(limit, int) else total_bytes()


def wire() -> int:
    """Keep the GPU's memory resident on macOS, so that weights are not paged out between frames; bytes allowed, 0 elsewhere.

    A limit of the process, up to what the system recommends; macOS 15 and later. Loading a checkpoint does it.
    """
    if not mx.metal.is_available():
        return 0
    limit = int(mx.device_info()["max_recommended_working_set_size"])
    mx.set_wired_limit(limit)
    return limit


def refuse_if_too_large(needed: int, what: str, advice: str) -> None:
    """Raise before anything is read if `needed` bytes cannot be had. `advice` is what would help, beside closing other programs."""
    available = available_bytes()
    # macOS compresses and evicts far more than `vm_stat` admits: only what exceeds the machine is hopeless there.
    limit = total_bytes() if sys.platform == "darwin" else available
    if needed > limit:
        raise CheckpointError(
            f"{what} needs {gigabytes(needed)} of memory, {gigabytes(limit)} are available. {advice} or close other programs."
        )
