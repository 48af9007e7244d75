"""`client_utils` of the published package: lines for a terminal, and printers that fill a column with words as they come."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TextIO

_COLOURS = {"warning": "1;31", "info": "1;34", "error": "1;31"}
_LAG, _RED = " [LAG]", "31"
_SPINNER = (("|", "32"), ("/", "33"), ("-", "31"), ("\\", "32"))
# Calls for which the spinner stands still: one a frame.
_FRAMES_PER_TURN = 5
_LEFT, _RIGHT = "| ", " |"


def colorize(text: str, color: str) -> str:
    """`text` between the escapes for `color` (`31`, `1;34`) and for none."""
    return f"\033[{color}m{text}\033[0m"


def make_log(level: str, msg: str) -> str:
    """A line for a terminal, with the coloured name of `level` in front."""
    if level not in _COLOURS:
        raise ValueError(f"unknown level {level!r}; expected {', '.join(_COLOURS)}")
    return f"{colorize(level.capitalize() + ':', _COLOURS[level])} {msg}"


class RawPrinter:
    """Tokens as they are, for pipes."""

    def __init__(self, stream: TextIO | None = None, err_stream: TextIO | None = None):
        self.stream, self.err_stream = stream or sys.stdout, err_stream or sys.stderr

    def print_header(self) -> None:
        """Nothing stands above raw text."""

    def print_token(self, token: str) -> None:
        print(token, end="", file=self.stream, flush=True)

    def log(self, level: str, msg: str) -> None:
        print(f"{level.capitalize()}: {msg}", file=self.err_stream, flush=True)

    def print_lag(self) -> None:
        print(colorize(_LAG, _RED), end="", file=self.err_stream, flush=True)

    def print_pending(self) -> None:
        """Waiting leaves no trace in raw text."""


@dataclass
class LineEntry:
    """A piece of a line; `color` as for `colorize`."""

    msg: str
    color: str | None = None

    def render(self) -> str:
        return self.msg if self.color is None else colorize(self.msg, self.color)

    def __len__(self) -> int:
        """Columns it takes."""
        return len(self.msg)


class Line:
    """The line at the cursor, from which the last pieces can be taken back. Its length is the columns it takes."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.entries: list[LineEntry] = []
        self._stale = 0

    def __bool__(self) -> bool:
        return bool(self.entries)

    def __len__(self) -> int:
        return sum(map(len, self.entries))

    def add(self, msg: str, color: str | None = None) -> int:
        """Append a piece; the columns it takes."""
        entry = LineEntry(msg, color)
        self.entries.append(entry)
        self.stream.write(entry.render())
        self._stale = max(0, self._stale - len(entry))
        return len(entry)

    def erase(self, count: int = 1) -> None:
        """Take back the last `count` pieces. What they leave behind is covered at the next `flush`."""
        before = len(self)
        self.entries = self.entries[: len(self.entries) - count]
        self._stale += before - len(self)
        self.stream.write("\r" + "".join(entry.render() for entry in self.entries))

    def newline(self) -> None:
        """End the line and begin an empty one."""
        self._cover()
        self.stream.write("\n")
        self.entries = []

    def flush(self) -> None:
        self._cover()
        self.stream.flush()

    def _cover(self) -> None:
        """Write blanks over what was taken back, and return to where the line ends."""
        self.stream.write(" " * self._stale + "\b" * self._stale)
        self._stale = 0


class Printer:
    """Words in a column of `max_cols` characters between two rules; a word that does not fit begins the next line."""

    def __init__(self, max_cols: int = 80, stream: TextIO | None = None, err_stream: TextIO | None = None):
        self.max_cols = max_cols
        self.stream, self.err_stream = stream or sys.stdout, err_stream or sys.stderr
        self.line = Line(self.stream)
        self._turns = 0
        self._is_waiting = False

    def print_header(self) -> None:
        self.line.add(f" {'-' * self.max_cols} ")
        self.line.newline()
        self.line.add(_LEFT)
        self.line.flush()

    def print_token(self, token: str, color: str | None = None) -> None:
        """Append a piece of text; one that begins with a space begins a word."""
        self._stop_waiting()
        if len(token) > self._room():
            begun = "" if color is not None or token.startswith(" ") else self._take_word()
            self._next_line()
            token = (begun + token).lstrip(" ")
        while len(token) > self._room() > 0:
            room = self._room()
            self.line.add(token[:room], color)
            token = token[room:]
            self._next_line()
        self.line.add(token, color)
        self.line.flush()

    def log(self, level: str, msg: str) -> None:
        """A message of its own line, on the other stream."""
        self._stop_waiting()
        if self.line:
            self.line.newline()
        self.line.flush()
        print(make_log(level, msg), file=self.err_stream, flush=True)

    def print_lag(self) -> None:
        self.print_token(_LAG, _RED)

    def print_pending(self) -> None:
        """A sign of life while nothing is said, replaced by whatever comes next."""
        self._stop_waiting()
        sign, color = _SPINNER[self._turns // _FRAMES_PER_TURN % len(_SPINNER)]
        self.line.add(sign, color)
        self.line.flush()
        self._turns += 1
        self._is_waiting = True

    def _room(self) -> int:
        return self.max_cols - len(self.line)

    def _stop_waiting(self) -> None:
        if self._is_waiting:
            self.line.erase()
        self._is_waiting = False

    def _take_word(self) -> str:
        """Take back the unfinished word at the end of the line, unless it is all there is on it."""
        entries = self.line.entries
        start = next(
            (i for i in range(len(entries) - 1, -1, -1) if entries[i].color or entries[i].msg.startswith(" ")), 0
        )
        if entries and entries[start].color:
            start += 1
        if not start:
            return ""
        word = "".join(entry.msg for entry in entries[start:])
        self.line.erase(len(entries) - start)
        return word

    def _next_line(self) -> None:
        self.line.add(" " * max(0, self._room()) + _RIGHT)
        self.line.newline()
        self.line.add(_LEFT)


AnyPrinter = Printer | RawPrinter
