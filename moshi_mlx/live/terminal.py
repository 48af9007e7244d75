"""The terminal while talking: Moshi's words, both levels, and how the machine keeps up."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

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
        width = self._console.width
        notices = [Text(n, style="yellow", overflow="fold") for n in self._notices]
        rest = Group(Text(""), *notices, _levels(status, width), _numbers(status, width), _keys(status, width))
        # What is higher than the screen would be cut at its foot, where the figures are.
        taken = len(self._console.render_lines(rest, pad=False)) + 1
        return Group(self._tail(width - 1, max(1, self._console.height - taken)), rest)

    def _tail(self, width: int, height: int) -> Text:
        """The last lines of what was said. Letters of Chinese, Japanese and Korean are two columns wide."""
        lines = Text(self._text.strip()).wrap(self._console, max(width, 10))
        return Text("\n").join(Text(line.plain.rstrip()) for line in lines[-height:])


def bar(level: float, length: int = BAR) -> str:
    """A level in dBFS as a row of blocks."""
    filled = round(length * min(max((level - FLOOR) / -FLOOR, 0.0), 1.0))
    return "\u2588" * filled + "\u2591" * (length - filled)


def _levels(status: Status, width: int) -> RenderableType:
    table = Table.grid(padding=(0, 1))
    you = "you (muted)" if status.muted else "you"
    heard, spoken = (f"{level:4.0f} dB" for level in (status.heard, status.spoken))
    # What is left beside both names and numbers, which stay whole.
    length = min(BAR, max(0, width - max(len(you), 5) - max(len(heard), len(spoken)) - 2))
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_row(you, Text(bar(status.heard, length), style="red" if status.muted else "green"), heard)
    table.add_row("Moshi", Text(bar(status.spoken, length), style="cyan"), spoken)
    return table


def joined(parts: Iterable[str], separator: str, width: int) -> str:
    """`parts` on as few lines of `width` characters as hold them, none broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(separator) + len(part) <= width:
            lines[-1] += separator + part
        else:
            lines.append(part)
    return "\n".join(lines)


def _numbers(status: Status, width: int) -> RenderableType:
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
    parts += [f"dropped {status.dropped}", f"underruns {status.underruns}"]
    late = status.dropped or step.last > 0.08
    return Text(joined(parts, " | ", width), style="yellow" if late else "dim", overflow="fold")


def _keys(status: Status, width: int) -> RenderableType:
    state = [] if status.state in ("talking", "ended") else [f"[{status.state}]"]
    return Text(joined([*state, *(f"{k} {action}" for k, action in KEYS.items())], "  ", width), style="dim")
