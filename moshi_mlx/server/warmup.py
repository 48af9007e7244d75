"""Before the first client: everything compiled, and the step measured with every row in use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.kind import Kind
from ..engine.streams import Inbox
from ..live.warmup import MEASURED, UNMEASURED, StepTimes


def warm_up(kind: Kind, options: Any, feed: Callable[[Inbox], None] | None = None) -> StepTimes:
    """Use all rows and leave them; on the thread of `kind`. `options` are those of a usual stream.

    `feed` gives an inbox what makes its row step; by default a frame of faint noise.
    """
    rows, bounds = range(kind.rows), kind.bounds
    for row in rows:
        for _ in kind.join(row, options):
            pass
    noise = np.random.default_rng(0).uniform(-0.01, 0.01, bounds.frame_size).astype(np.float32)
    inboxes = {row: Inbox(bounds, threading.Condition()) for row in rows}
    times = []
    for _ in range(UNMEASURED + MEASURED):
        for inbox in inboxes.values():
            if feed is None:
                inbox.feed(noise)
            else:
                feed(inbox)
        given = {row: kind.collect(row, inbox) for row, inbox in inboxes.items()}
        begun = time.perf_counter()
        kind.step(given)
        times.append(1000 * (time.perf_counter() - begun))
    for row in rows:
        kind.leave(row)
    p50, p95 = np.percentile(times[UNMEASURED:], [50, 95])
    return StepTimes(float(p50), float(p95))
