"""The terminal while talking: Moshi's words, both levels, and how the machine keeps up."""

from __future__ import annotations

import textwrap
from collections import deque

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .figures import Status
from .keys import KEYS
from .reporter import Event

TEXT_KEPT = 4000
NOTICES = 3
BAR = 24
FLOOR = -60.0


class TerminalView:
    """Redraws ten times a second, and at once when words come."""

    period = 0.1

    def __init__(self, console: Console | None = None):
        self._console = console or Console(highlight=False)
        self._text = ""
        self._notices: deque[str] = deque(maxlen=NOTICES)
        self._live: Live | None = None

    def start(self, status: Status) -> None:
        self._live = Live(self._picture(status), console=self._console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, event: Event) -> None:
        if event.kind == "text":
            self._text = (self._text + event.fields["text"])[-TEXT_KEPT:]
        elif event.kind == "notice":
            self._notices.append(event.fields["text"])

    def draw(self, status: Status) -> None:
        if self._live is not None:
            self._live.update(self._picture(status), refresh=True)

    def end(self, status: Status) -> None:
        if self._live is not None:
            self._live.stop()
        if self._text.strip():
            self._console.print(self._text.strip(), markup=False)

    # The picture ------------------------------------------------------------------------------------------------------

    def _picture(self, status: Status) -> RenderableType:
        words = Text(self._tail(self._console.width - 1, max(3, self._console.height - 9)))
        notices = [Text(n, style="yellow", overflow="fold") for n in self._notices]
        return Group(words, Text(""), *notices, _levels(status), _numbers(status), _keys(status))

    def _tail(self, width: int, height: int) -> str:
        """The last lines of what was said."""
        lines = textwrap.wrap(self._text.strip(), max(width, 10))
        return "\n".join(lines[-height:])


def bar(level: float) -> str:
    """A level in dBFS as a row of blocks."""
    filled = round(BAR * min(max((level - FLOOR) / -FLOOR, 0.0), 1.0))
    return "\u2588" * filled + "\u2591" * (BAR - filled)


def _levels(status: Status) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    you = "you (muted)" if status.muted else "you"
    table.add_row(you, Text(bar(status.heard), style="red" if status.muted else "green"), f"{status.heard:4.0f} dB")
    table.add_row("Moshi", Text(bar(status.spoken), style="cyan"), f"{status.spoken:4.0f} dB")
    return table


def _numbers(status: Status) -> RenderableType:
    step, latency = status.steps, status.latency
    minutes, seconds = divmod(int(status.seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [
        f"{hours}:{minutes:02d}:{seconds:02d}",
        f"step {1000 * step.last:.0f} ms (p95 {1000 * step.percentile(95):.0f}) of 80",
        f"lag {1000 * status.lag:.0f} ms",
        f"buffer {1000 * status.buffered:.0f} ms",
    ]
    if latency.count:
        parts.append(
            f"latency {1000 * latency.percentile(50):.0f} / {1000 * latency.percentile(95):.0f} / {1000 * latency.worst:.0f} ms"
        )
    parts.append(f"dropped {status.dropped}, underruns {status.underruns}")
    late = status.dropped or step.last > 0.08
    return Text(" | ".join(parts), style="yellow" if late else "dim", overflow="fold")


def _keys(status: Status) -> RenderableType:
    state = {"talking": "", "ended": ""}.get(status.state, f"[{status.state}] ")
    return Text(state + "  ".join(f"{k} {action}" for k, action in KEYS.items()), style="dim")
