"""What the loop asks of its two sides. Devices are in `audio/streams.py`, files in `file_sides.py`."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..audio.playback import Playback
from ..session.session import Frame


class Source(Protocol):
    """The user's sound, one frame at a time."""

    @property
    def paced(self) -> bool:
        """Whether frames come at the pace of speech."""

    @property
    def ended(self) -> bool: ...

    @property
    def delay(self) -> float:
        """Seconds the device takes to deliver."""

    @property
    def completed(self) -> float:
        """When the last sample of the frame read last was delivered (`time.perf_counter`)."""

    @property
    def lag(self) -> float:
        """Seconds captured and not yet read."""

    @property
    def dropped(self) -> int:
        """Frames lost because they were read too late."""

    @property
    def invalid(self) -> int:
        """Samples that were not numbers, taken as silence."""

    @property
    def silent(self) -> bool:
        """Whether there have been nothing but zeros for seconds."""

    @property
    def errors(self) -> int:
        """Blocks the device says it lost."""

    def open(self) -> None: ...

    def started(self, timeout: float) -> bool:
        """Whether sound comes by now; waits up to `timeout` seconds. To be called until it does."""

    def read(self, timeout: float) -> np.ndarray | None:
        """The next frame `[1920]`; None at the end, after `timeout` seconds without one, or after `wake`."""

    def problem(self) -> str | None:
        """What keeps the device from working, None when it works."""

    def pause(self, paused: bool) -> None: ...

    def suspend(self) -> None: ...

    def wake(self) -> None: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """Where the reply goes."""

    @property
    def delay(self) -> float:
        """Seconds the device takes to play."""

    @property
    def playback(self) -> Playback | None:
        """The buffer before a loudspeaker, None for files."""

    @property
    def buffered(self) -> float: ...

    @property
    def hold(self) -> float: ...

    @property
    def underruns(self) -> int: ...

    @property
    def errors(self) -> int: ...

    def open(self) -> None: ...

    def started(self, timeout: float) -> bool:
        """Whether it plays by now; waits up to `timeout` seconds."""

    def write(self, pcm: np.ndarray, captured: float | None = None) -> None:
        """The next frame; `captured`: when the user's frame it answers was complete."""

    def problem(self) -> str | None: ...

    def stop(self) -> None:
        """Be silent at once."""

    def suspend(self) -> None: ...

    def finish(self) -> None:
        """The end: everything written is heard or kept."""

    def close(self) -> None: ...


class Talker(Protocol):
    """What answers: a `Session`, or anything that steps like one."""

    def step(self, pcm: np.ndarray) -> Frame: ...

    def reset(self, seed: int | None = None) -> None: ...
