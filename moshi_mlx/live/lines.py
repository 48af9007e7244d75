"""Views for pipes and files: the words as plain text, or every event as a line of JSON."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from .figures import Status
from .reporter import Event


class PlainView:
    """Moshi's words on standard output, everything about the talk on standard error."""

    period = None

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None):
        self._out, self._err = out or sys.stdout, err or sys.stderr
        self._begun = False

    def start(self, status: Status) -> None:
        pass

    def show(self, event: Event) -> None:
        if event.kind == "text":
            text = event.fields["text"]
            print(text if self._begun else text.lstrip(), end="", file=self._out, flush=True)
            self._begun = True
        elif event.kind == "notice":
            self._break()
            print(event.fields["text"], file=self._err, flush=True)

    def draw(self, status: Status) -> None:
        pass

    def end(self, status: Status) -> None:
        self._break()

    def _break(self) -> None:
        if self._begun:
            print(file=self._out, flush=True)
        self._begun = False


class JsonView:
    """One JSON object a line on standard output, its kind under "event"."""

    period = None

    def __init__(self, out: TextIO | None = None):
        self._out = out or sys.stdout

    def start(self, status: Status) -> None:
        pass

    def show(self, event: Event) -> None:
        self._print(event.kind, event.fields)

    def draw(self, status: Status) -> None:
        pass

    def end(self, status: Status) -> None:
        self._print("end", status.figures())

    def _print(self, kind: str, fields: dict) -> None:
        print(json.dumps({"event": kind, **fields}, ensure_ascii=False), file=self._out, flush=True)


def summary(status: Status) -> str:
    """The talk in a line."""
    steps, latency = status.steps.milliseconds(), status.latency.milliseconds()
    parts = [
        f"{status.seconds:.1f} s, {status.frames} frames",
        f"step p50 {steps['p50']} p95 {steps['p95']} worst {steps['worst']} ms",
    ]
    if status.latency.count:
        parts.append(f"latency p50 {latency['p50']} p95 {latency['p95']} worst {latency['worst']} ms")
    parts.append(f"{status.dropped} frames dropped, {status.underruns} underruns")
    if status.device_errors:
        parts.append(f"{status.device_errors} blocks lost by the devices")
    if status.reconnects:
        parts.append(f"{status.reconnects} reconnections")
    return "; ".join(parts)
