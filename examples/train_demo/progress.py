"""A progress bar on a terminal; one line a minute in a log file."""

import sys
import time

from rich.progress import Progress as RichProgress


class Progress:
    """`with Progress("name", total, "unit") as p: p.advance(n, "note")`."""

    def __init__(self, name: str, total: float, unit: str = "", done: float = 0):
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._live = RichProgress() if sys.stdout.isatty() else None
        self._started, self._first, self._printed = time.time(), done, time.time()

    def __enter__(self):
        if self._live:
            self._live.start()
            self._task = self._live.add_task(self.name, total=self.total, completed=self.done)
        return self

    def __exit__(self, *exc):
        if self._live:
            self._live.stop()
        elif exc[0] is None:
            self._print("done")

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        if self._live:
            self._live.update(self._task, completed=self.done, description=f"{self.name} {note}")
        elif time.time() - self._printed > 60:
            self._print(note)

    def _print(self, note: str) -> None:
        self._printed = time.time()
        speed = (self.done - self._first) / max(1e-9, self._printed - self._started)
        left = (self.total - self.done) / speed / 60 if speed else float("inf")
        print(f"{self.name}: {self.done:.0f}/{self.total:.0f} {self.unit}, {speed:.1f}/s, "
              f"{left:.0f} min left {note}", flush=True)  # fmt: skip
