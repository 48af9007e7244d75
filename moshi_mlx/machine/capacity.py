"""What this machine can hold and how fast it can read it: what the choice of a precision depends on."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from . import device, memory
from .chips import bandwidth, chip

# A frame has 80 ms; the rest of it is for the codec, kernels and what else the machine does.
FRAME_SECONDS, SHARE_OF_FRAME = 0.08, 0.8


@dataclass(frozen=True)
class Capacity:
    """`memory` in bytes, `bandwidth` in GB/s (None: unknown), `wide`: whether activations and dense weights are float32."""

    memory: int
    bandwidth: int | None
    wide: bool

    def holds(self, needed: int) -> bool:
        return needed <= self.memory

    def keeps_up(self, frame_bytes: int) -> bool:
        """Whether so many bytes can be read in the time of a frame, by the nominal bandwidth; true where that is unknown."""
        return self.bandwidth is None or frame_bytes <= self.bandwidth * 1e9 * FRAME_SECONDS * SHARE_OF_FRAME


def capacity() -> Capacity:
    """Of this machine: its GPU's memory and bandwidth, or the whole memory where MLX computes on the CPU."""
    on_gpu = device.on_gpu()
    limit = memory.device_bytes() if on_gpu else memory.total_bytes()
    return Capacity(limit, bandwidth(chip()) if on_gpu else None, default_dtype() == mx.float32)


def default_dtype() -> mx.Dtype:
    """bfloat16 on a GPU. The CPU backend multiplies quantised weights by bfloat16 slowly and inexactly: float32 there."""
    return mx.bfloat16 if device.on_gpu() else mx.float32
