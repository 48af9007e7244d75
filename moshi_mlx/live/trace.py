"""`--trace FILE`: where the time of every frame goes, for chrome://tracing or ui.perfetto.dev. Only when asked."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..output import check_writable, write_text

# About two hours of talk; older events make room.
KEPT = 400_000


class Trace:
    """Spans and counters of one thread, in memory until `write`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        check_writable(self.path)
        self._events: deque[dict] = deque(maxlen=KEPT)
        self._start = time.perf_counter()

    def _now(self) -> float:
        return round((time.perf_counter() - self._start) * 1e6, 1)

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begun = self._now()
        try:
            yield
        finally:
            self._events.append({"name": name, "ph": "X", "ts": begun, "dur": self._now() - begun, "pid": 1, "tid": 1})

    def counters(self, **values: float) -> None:
        for name, value in values.items():
            self._events.append({"name": name, "ph": "C", "ts": self._now(), "pid": 1, "args": {name: value}})

    def instant(self, name: str) -> None:
        self._events.append({"name": name, "ph": "i", "ts": self._now(), "pid": 1, "tid": 1, "s": "p"})

    def write(self) -> None:
        """Give the file its content, whole or not at all."""
        names = [{"name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": {"name": "model"}}]
        body = ",\n".join(json.dumps(e) for e in [*names, *self._events])
        write_text(self.path, f'{{"traceEvents": [\n{body}\n], "displayTimeUnit": "ms"}}\n')


class NoTrace:
    """Costs nothing."""

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        yield

    def counters(self, **values: float) -> None:
        pass

    def instant(self, name: str) -> None:
        pass

    def write(self) -> None:
        pass
