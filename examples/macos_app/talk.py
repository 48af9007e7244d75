"""A talk inside an application: loading, the live loop and its threads behind a few methods. Knows nothing of windows.

Everything is called on the application's thread and returns at once; what happens is told to `tell(kind, **fields)`, on other
threads: "state" (loading, talking, ended), "text", "word", "notice", "status".
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from moshi_mlx.audio import echo
from moshi_mlx.errors import MoshiError
from moshi_mlx.live.assemble import make_sides
from moshi_mlx.live.controls import Controls
from moshi_mlx.live.loop import LiveLoop
from moshi_mlx.live.warmup import warm_up
from moshi_mlx.session import Session


class Talk:
    """One talk at a time. `sides` are options of `make_sides`, the rest those of `Session.load`, made anew for every talk."""

    def __init__(self, tell: Callable[..., Any], *, sides: dict | None = None, **model: Any):
        self._tell, self._sides, self._model = tell, sides or {}, model
        self._thread: threading.Thread | None = None
        self.controls = Controls()

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Load, open the devices and talk, on a thread of the talk's own."""
        if self.running:
            return
        self.controls = Controls()
        self._thread = threading.Thread(target=self._run, args=(self.controls,), name="talk", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the talk with the present frame; `wait` until it has ended."""
        self.controls.stop()

    def wait(self, seconds: float | None = None) -> None:
        if self._thread is not None:
            self._thread.join(seconds)

    def _run(self, controls: Controls) -> None:
        try:
            self._tell("state", state="loading")
            sides = make_sides(**self._sides)
            try:
                # The thread that loads a model is the thread that steps it.
                session = Session.load(**self._model)
                if sides.real_time:
                    for line in warm_up(session).verdict():
                        self._tell("notice", text=line)
                canceller = echo.make(None if sides.loudspeaker_and_microphone else "off")
                loop = LiveLoop(
                    session,
                    sides.source,
                    sides.sink,
                    canceller=canceller,
                    controls=controls,
                    tell=self._tell,
                    restart_audio=sides.restart_audio,
                )
                self._tell("state", state="talking")
                loop.run()
            finally:
                sides.close()
        except MoshiError as e:
            self._tell("notice", text=str(e))
        finally:
            self._tell("state", state="ended")
