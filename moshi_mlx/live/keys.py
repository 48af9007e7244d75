"""Single keys from the terminal, read by a thread of their own; the terminal is put back however the talk ends."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading

from .controls import Controls

KEYS = {"m": "mute", "p": "pause", "r": "restart", "q": "quit"}


def press(controls: Controls, key: str) -> None:
    """What a key does; unknown ones do nothing."""
    action = KEYS.get(key.lower())
    if action == "mute":
        controls.toggle_mute()
    elif action == "pause":
        controls.toggle_pause()
    elif action == "restart":
        controls.restart()
    elif action == "quit":
        controls.stop()


class KeyReader:
    """A context that reads keys while it is open. Does nothing where standard input is no terminal, or another program's."""

    def __init__(self, controls: Controls, file: int | None = None):
        self._controls = controls
        self._file = _standard_input() if file is None else file
        self._thread: threading.Thread | None = None
        self._before: list = []

    def __enter__(self) -> KeyReader:
        if self._file is None or not _is_ours(self._file):
            return self
        import termios
        import tty

        self._before = termios.tcgetattr(self._file)
        # Keys come one by one and are not shown; Ctrl-C and the like keep their meaning.
        tty.setcbreak(self._file)
        self._read_end, self._write_end = os.pipe()
        self._thread = threading.Thread(target=self._run, name="keys", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self._thread is None or self._file is None:
            return
        import termios

        os.write(self._write_end, b"x")
        self._thread.join(2)
        os.close(self._read_end)
        os.close(self._write_end)
        # The terminal itself may be gone.
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(self._file, termios.TCSADRAIN, self._before)

    def _run(self) -> None:
        assert self._file is not None
        while True:
            readable, _, _ = select.select([self._file, self._read_end], [], [])
            if self._read_end in readable:
                return
            try:
                data = os.read(self._file, 32)
            except OSError:
                return
            if not data:
                return
            for key in data.decode(errors="ignore"):
                press(self._controls, key)


def _standard_input() -> int | None:
    try:
        return sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _is_ours(file: int) -> bool:
    """A terminal whose keys come to this program: not that of a program in the background, which would be stopped."""
    if not os.isatty(file):
        return False
    try:
        return os.tcgetpgrp(file) == os.getpgrp()
    except OSError:
        # Not the terminal this program was started from.
        return True
