"""A file whose unfinished part keeps a fixed name, to be continued by a later run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ..errors import OutputError
from .places import reason


class PartOutput:
    """`part` becomes `path` with `commit`; `discard` leaves it where it is. Raises `OutputError` under the name of `path`."""

    def __init__(self, path: Path, part: Path):
        self.path, self._part = path, part
        try:
            # A symbolic link in its place would be followed.
            self._fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except OSError as e:
            raise self._failed(e) from None
        self._open = True

    def _failed(self, e: OSError) -> OutputError:
        return OutputError(f"{self.path} cannot be written: {reason(e)}.")

    def go_on_at(self, position: int) -> None:
        """Whatever lies further on is not trusted."""
        try:
            os.ftruncate(self._fd, position)
            os.lseek(self._fd, position, os.SEEK_SET)
        except OSError as e:
            raise self._failed(e) from None

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        left = view.cast("B") if view.nbytes else view
        try:
            while left.nbytes:
                left = left[os.write(self._fd, left) :]
        except OSError as e:
            raise self._failed(e) from None

    def sync(self) -> None:
        """Past the system's caches."""
        try:
            os.fsync(self._fd)
        except OSError as e:
            raise self._failed(e) from None

    def commit(self) -> None:
        self.sync()
        self.discard()
        try:
            os.replace(self._part, self.path)
        except OSError as e:
            raise self._failed(e) from None

    def discard(self) -> None:
        if self._open:
            self._open = False
            with contextlib.suppress(OSError):
                os.close(self._fd)
