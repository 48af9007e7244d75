"""What the user or a program can do to a running talk, from any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Controls:
    """Switches read by the loop between frames. Methods may be called from any thread and from signal handlers."""

    def __init__(self) -> None:
        self.muted = self.paused = False
        self.exit_code: int | None = None
        self.reason = ""
        self._restart = False
        self._changed = threading.Event()
        self._wake: Callable[[], None] | None = None

    def on_change(self, wake: Callable[[], None] | None) -> None:
        """What ends the loop's present wait for sound."""
        self._wake = wake

    def toggle_mute(self) -> None:
        self.muted = not self.muted
        self._notify()

    def toggle_pause(self) -> None:
        self.paused = not self.paused
        self._notify()

    def restart(self) -> None:
        """Begin a new conversation with the next frame."""
        self._restart = True
        self.paused = False
        self._notify()

    def stop(self, exit_code: int = 0, reason: str = "") -> None:
        """End the talk with the next frame, keeping everything. The first reason stays."""
        if self.exit_code is None:
            self.exit_code, self.reason = exit_code, reason
        self._notify()

    @property
    def stopping(self) -> bool:
        return self.exit_code is not None

    def take_restart(self) -> bool:
        wanted, self._restart = self._restart, False
        return wanted

    def wait(self, seconds: float) -> None:
        """Until something changes, at most `seconds`."""
        self._changed.wait(seconds)
        self._changed.clear()

    def _notify(self) -> None:
        self._changed.set()
        if self._wake is not None:
            self._wake()
