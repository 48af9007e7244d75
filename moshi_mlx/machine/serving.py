"""How many rows of each kind of model a machine can serve: what fits its memory, and what it can read in the time of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .capacity import FRAME_SECONDS, SHARE_OF_FRAME, Capacity
from .memory import OVERHEAD_BYTES

# Rows were measured up to here; whoever wants more says so.
MOST_ROWS = 8
# A server is not the only program: of the memory that is recommended for the GPU so much is taken.
SHARE_OF_MEMORY = 0.9


@dataclass(frozen=True)
class Cost:
    """What serving a model costs, in bytes: `weights` kept in memory, `frame` of them read by every step, whatever its rows, and `row`, the
    keys and values of a full window, kept for each row and read with each of its frames.
    """

    weights: int
    frame: int
    row: int


def rows_that_fit(costs: Sequence[Cost], machine: Capacity, most: int = MOST_ROWS) -> int:
    """Rows that every one of the models can have at once, all of them busy; 0 where not even one each can be had.

    On a machine whose bandwidth is not known only memory counts: see `rows_in_time`.
    """
    fitting = 0
    for rows in range(1, most + 1):
        held = OVERHEAD_BYTES + sum(c.weights + rows * c.row for c in costs)
        read = sum(c.frame + rows * c.row for c in costs)
        if held > SHARE_OF_MEMORY * machine.memory or not machine.keeps_up(read):
            break
        fitting = rows
    return fitting


def rows_in_time(seconds: Sequence[float], most: int = MOST_ROWS) -> int:
    """Rows by measured steps of one row of each model, as if every further row took as long again, which it does at worst."""
    budget = FRAME_SECONDS * SHARE_OF_FRAME
    return max(1, min(most, int(budget / max(sum(seconds), 1e-9))))
