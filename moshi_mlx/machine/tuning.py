"""Settings that make a checkpoint faster on one machine, tried out: each in a process of its own, since MLX reads some when it starts.

A trial is the benchmark command with a few more flags, whose JSON says how long frames took at the beginning of a talk and with the attention
window full, and whether rings were copied.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

FRAME_MS = 80.0
# Above this share of a frame there is no room for a late one.
COMFORTABLE = 0.85
# Operations and megabytes of a command buffer: MLX's own for the chip, then larger ones, which save the CPU work.
BUFFERS: tuple[tuple[int, int] | None, ...] = (None, (100, 100), (200, 500), (400, 1000))
# Of two settings that differ by less, the plainer one is better.
WORTHWHILE = 0.02


@dataclass(frozen=True)
class Setting:
    """`flags` of a command, and what MLX finds in the environment."""

    flags: tuple[str, ...] = ()
    buffers: tuple[int, int] | None = None

    @property
    def environment(self) -> dict[str, str]:
        if self.buffers is None:
            return {}
        return {"MLX_MAX_OPS_PER_BUFFER": str(self.buffers[0]), "MLX_MAX_MB_PER_BUFFER": str(self.buffers[1])}

    def __str__(self) -> str:
        said = [f"{k}={v}" for k, v in self.environment.items()] + list(self.flags)
        return " ".join(said) or "as it is"


@dataclass(frozen=True)
class Trial:
    """What a setting gave: milliseconds per frame at first and with a full window, or why it gave nothing."""

    setting: Setting
    start: float = 0.0
    full: float = 0.0
    worst: float = 0.0
    copies: bool = False
    failed: str = ""
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return not self.failed and not self.copies

    @property
    def keeps_up(self) -> bool:
        return self.usable and self.worst <= COMFORTABLE * FRAME_MS

    def verdict(self) -> str:
        if self.failed:
            return self.failed
        if self.copies:
            return "refused: every ring of keys and values is copied at every step"
        if self.keeps_up:
            return "keeps up"
        return "keeps up with little to spare" if self.worst <= FRAME_MS else "does not keep up"


def settings(
    precisions: Sequence[str | None], kv_bits: int | None, context: int | None, buffers: bool = True
) -> list[list[Setting]]:
    """Rounds of settings: each round is tried with the best of those before. What was asked for is not varied.

    `precisions`: values of -q to try, None for as stored. `buffers`: whether there are command buffers, which a CPU has not.
    """
    rounds = [[Setting(() if q is None else ("-q", q)) for q in precisions]]
    if buffers:
        rounds.append([Setting(buffers=b) for b in BUFFERS])
    if kv_bits is None:
        rounds.append([Setting(), Setting(("--kv-bits", "8"))])
    if context is None:
        rounds.append([Setting(), Setting(("--context", "120")), Setting(("--context", "60"))])
    return rounds


def joined(a: Setting, b: Setting) -> Setting:
    return Setting(a.flags + b.flags, b.buffers or a.buffers)


def measure(arguments: Sequence[str], setting: Setting) -> Trial:
    """Run the benchmark with `arguments` and a setting. Nothing is downloaded for it."""
    command = [sys.executable, "-m", "moshi_mlx.bench", *arguments, *setting.flags, "--json", "--trial"]
    environment = {**os.environ, **setting.environment, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"ended with {result.returncode}"]
        return Trial(setting, failed=f"cannot be run: {lines[-1].removeprefix('error: ')}")
    figures = json.loads(result.stdout)
    late, first = figures["full_window"], figures["ms_per_frame"]
    worst = max(first["p95"], late["p95"])
    return Trial(setting, first["p50"], late["p50"], worst, figures["rings_copied"], figures=figures)


def search(
    rounds: Sequence[Sequence[Setting]], run: Callable[[Setting], Trial], tell: Callable[[Trial], None]
) -> Trial:
    """The best trial of all rounds.

    Precision, window and packing cost quality, so a round that leaves less of it is entered only until something keeps up; buffers cost nothing
    and are always tried.
    """
    best: Trial | None = None
    for settings_of_round in rounds:
        free = all(not s.flags for s in settings_of_round)
        if best is not None and best.keeps_up and not free:
            continue
        base = Setting() if best is None else best.setting
        for setting in settings_of_round:
            wanted = joined(base, setting)
            if best is not None and wanted == best.setting:
                continue
            trial = run(wanted)
            tell(trial)
            if best is None or not best.usable or (trial.usable and trial.full < (1 - WORTHWHILE) * best.full):
                best = trial
            if best.keeps_up and not free:
                # What follows in a round is smaller, not better.
                break
    assert best is not None
    return best
