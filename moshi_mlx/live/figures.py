"""Figures of a talk of any length in constant memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


class Histogram:
    """Durations in seconds: percentiles to 0.25 ms up to one second, the worst exactly."""

    WIDTH, LIMIT = 0.00025, 1.0

    def __init__(self) -> None:
        self._counts = np.zeros(round(self.LIMIT / self.WIDTH) + 1, np.int64)
        self.count, self.worst, self.last, self._sum = 0, 0.0, 0.0, 0.0

    def add(self, seconds: float) -> None:
        self._counts[min(max(int(seconds / self.WIDTH), 0), len(self._counts) - 1)] += 1
        self.count, self.last, self._sum = self.count + 1, seconds, self._sum + seconds
        self.worst = max(self.worst, seconds)

    @property
    def mean(self) -> float:
        return self._sum / self.count if self.count else 0.0

    def percentile(self, p: float) -> float:
        """The value `p` percent of the durations do not exceed (the upper edge of its cell); the worst beyond the range."""
        if not self.count:
            return 0.0
        cell = int(np.searchsorted(np.cumsum(self._counts), max(1, np.ceil(self.count * p / 100))))
        return self.worst if cell == len(self._counts) - 1 else min((cell + 1) * self.WIDTH, self.worst)

    def milliseconds(self) -> dict[str, float]:
        return {
            "p50": round(1000 * self.percentile(50), 2),
            "p95": round(1000 * self.percentile(95), 2),
            "worst": round(1000 * self.worst, 2),
        }


@dataclass
class Status:
    """How the talk is going. The loop writes it, views read it at any moment; every field is replaced, none grows."""

    state: str = "starting"  # talking, paused, waiting, ended
    frames: int = 0  # stepped since the beginning, over all restarts
    seconds: float = 0.0  # of talk
    muted: bool = False
    heard: float = -120.0  # level of the last frame, dBFS
    spoken: float = -120.0
    lag: float = 0.0  # seconds of the user's sound that waited behind the last frame
    buffered: float = 0.0  # seconds of the reply waiting
    hold: float = 0.0  # the playback buffer asked for, seconds
    dropped: int = 0  # frames of the user's sound given up
    underruns: int = 0
    invalid: int = 0  # samples that were not numbers
    device_errors: int = 0
    reconnects: int = 0
    memory: int = 0  # bytes held by MLX
    steps: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(
        default_factory=Histogram
    )  # end of the user's frame to its answer in the air, devices included

    def figures(self) -> dict:
        """For programs: plain numbers, milliseconds where the name says so."""
        return {
            "frames": self.frames,
            "seconds": round(self.seconds, 2),
            "step_ms": self.steps.milliseconds(),
            "latency_ms": self.latency.milliseconds() if self.latency.count else None,
            "lag_ms": round(1000 * self.lag, 1),
            "buffer_ms": round(1000 * self.buffered, 1),
            "hold_ms": round(1000 * self.hold, 1),
            "dropped_frames": self.dropped,
            "underruns": self.underruns,
            "invalid_samples": self.invalid,
            "device_errors": self.device_errors,
            "reconnects": self.reconnects,
            "memory_mb": round(self.memory / 1e6, 1),
        }
