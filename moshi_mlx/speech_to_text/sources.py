"""Where live audio comes from: the microphone, or a file that stands in for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from ..audio.files import AudioReader, Raw
from ..errors import AudioError

FRAME_SIZE = 1920
# Transcription may catch up after a while of thinking: nothing is given up before so many seconds wait.
BACKLOG_SECONDS = 4.0


class FrameSource(Protocol):
    """Frames float32 `[1920]` at 24 kHz. `live`: they come by themselves, whether they are read or not."""

    live: bool

    @property
    def dropped(self) -> int:
        """Frames lost because they were not read in time."""
        ...

    def begin(self) -> None:
        """Start to listen, from now on."""
        ...

    def frames(self) -> Iterator[np.ndarray]: ...

    def __enter__(self) -> FrameSource: ...

    def __exit__(self, *_) -> None: ...


def open_source(
    file: str | None, device: str | None, raw: Raw | None = None, tell: Callable[[str], None] | None = None
) -> FrameSource:
    """`file` as if it were a microphone (`-`: standard input), else the microphone `device` (None: the default one)."""
    return MicrophoneSource(device) if file is None else FileSource(file, raw, tell)


class FileSource:
    """A recording, read as fast as it is heard, or a pipe, heard as fast as it comes."""

    live = False
    dropped = 0

    def __init__(self, path: str, raw: Raw | None = None, tell: Callable[[str], None] | None = None):
        self._reader = AudioReader(path, raw=raw, tell=tell)

    def begin(self) -> None:
        pass

    def frames(self) -> Iterator[np.ndarray]:
        return self._reader.frames(FRAME_SIZE)

    def __enter__(self) -> FileSource:
        return self

    def __exit__(self, *_) -> None:
        self._reader.close()


class MicrophoneSource:
    """A sound device. Its callback only moves samples into a bounded ring, and is never waited for."""

    live = True

    def __init__(self, device: str | None):
        from ..audio.devices import portaudio
        from ..audio.streams import Microphone, Wanted

        self._microphone = Microphone(portaudio(), Wanted(device), FRAME_SIZE, BACKLOG_SECONDS)
        # Told at once, not after a model was loaded.
        self._microphone.find()

    @property
    def dropped(self) -> int:
        return self._microphone.dropped

    def begin(self) -> None:
        self._microphone.open()

    def frames(self) -> Iterator[np.ndarray]:
        while True:
            frame = self._microphone.read(0.5)
            if frame is not None:
                yield frame
                continue
            problem = self._microphone.problem()
            if problem is not None:
                raise AudioError(f"{problem}. Connect it again, or choose another with --input-device.")

    def __enter__(self) -> MicrophoneSource:
        return self

    def __exit__(self, *_) -> None:
        self._microphone.close()
