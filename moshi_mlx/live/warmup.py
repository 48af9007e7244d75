"""Before the talk: measure the step, and say honestly whether it keeps up. Sessions compile what they need when they are made."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..modules import transformer
from .sides import Talker

FRAME_MS = 80.0
# While the model's delays pass it has nothing to say; what follows is measured.
UNMEASURED, MEASURED = 6, 25
# Above this share of a frame there is little room for everything else the machine does.
COMFORTABLE = 0.85


@dataclass(frozen=True)
class StepTimes:
    """Milliseconds per frame, and bytes held by MLX while they were measured."""

    p50: float
    p95: float
    memory: int = 0

    @property
    def jitter(self) -> float:
        """How much later than usual a frame may come, in seconds."""
        return max(0.0, self.p95 - self.p50) / 1000


@dataclass(frozen=True)
class WarmUp:
    """Times at the beginning of a talk, and with the attention window full."""

    start: StepTimes
    full: StepTimes

    def verdict(self) -> list[str]:
        """What to expect, and what to do where that is not enough."""
        start, full = self.start, self.full
        said = (
            f"{start.p50:.1f} ms per frame (p95 {start.p95:.1f}) of {FRAME_MS:.0f}, memory {start.memory / 1e9:.2f} GB; "
            f"in a long talk {full.p50:.1f} ms (p95 {full.p95:.1f}), {full.memory / 1e9:.2f} GB"
        )
        worst = max(start.p95, full.p95)
        if worst <= COMFORTABLE * FRAME_MS:
            return [f"{said}: keeps up"]
        if worst <= FRAME_MS:
            return [f"{said}: keeps up with little to spare", _advice("if it falls behind")]
        late = "will not keep up" if start.p95 > FRAME_MS else "will not keep up once the window is full"
        return [f"{said}: {late}, sound will be dropped and the reply will have gaps", _advice("to keep up")]


def _advice(condition: str) -> str:
    return (
        f"{condition}: close other programs, plug in the power, choose a smaller precision (down to -q 4) "
        "or a shorter memory (--context 60)"
    )


def warm_up(talker: Talker, frame_size: int = 1920) -> WarmUp:
    """Step through faint noise, measure with rings of their first size and of their last, and put the conversation back at its beginning."""
    pcm = np.random.default_rng(0).uniform(-0.01, 0.01, frame_size).astype(np.float32)
    for _ in range(UNMEASURED):
        talker.step(pcm)
    start = _measure(talker, pcm)
    full = _measure(talker, pcm) if _fill(talker) else start
    talker.reset()
    return WarmUp(start, full)


def _measure(talker: Talker, pcm: np.ndarray) -> StepTimes:
    times = []
    for _ in range(MEASURED):
        begun = time.perf_counter()
        talker.step(pcm)
        times.append(1000 * (time.perf_counter() - begun))
    p50, p95 = np.percentile(times, [50, 95])
    return StepTimes(float(p50), float(p95), mx.get_active_memory())


def _fill(talker: Any) -> bool:
    """Give the talker rings as large as its window; false where they are, or where it has no such."""
    if not hasattr(talker, "state"):
        return False
    state = talker.state
    trunk = state["lm"]["trunk"]
    capacity, limit = transformer.capacity_of(trunk), talker.lm.transformer.capacity()
    if limit is None or capacity >= limit:
        return False
    talker.state = {**state, "lm": {**state["lm"], "trunk": transformer.grow(trunk, limit)}}
    return True
