"""Opening outputs: whole or not at all, straight into what is no regular file, or growing in place where that is asked for."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

from ..errors import OutputError
from . import unfinished
from .places import check_writable, descriptor, follow, is_standard_output, mode_of, reason

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
_COPY_BYTES = 1 << 20


class OutputFile:
    """One output, opened when it is made. `commit` gives a regular file its name; anything else leaves nothing of it.

    `fd` is its descriptor, None where standard output has none (in a program that caught it). `straight`: bytes reach their
    reader at once, and there is no way back: nothing can be written anew or taken away.
    """

    def __init__(self, path: str | Path):
        """Raises `OutputError` under the name that was given."""
        self.name = str(path)
        self.fd: int | None = None
        self._temporary: Path | None = None
        self._standard = is_standard_output(path)
        self.straight = True
        check_writable(path)
        if self._standard:
            self._open_standard_output()
            return
        self._place = follow(path)
        try:
            mode = mode_of(self._place)
            own = descriptor(self._place)
            if own is not None:
                self.fd = os.dup(own)
            elif mode is not None and not stat.S_ISREG(mode):
                self.fd = os.open(self._place, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY)
            else:
                self.straight = False
                folder, name = os.path.split(self._place)
                self._temporary = unfinished.temporary_name(Path(folder), name)
                self.fd = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
                if mode is not None:
                    os.fchmod(self.fd, stat.S_IMODE(mode))
        except OSError as e:
            self.discard()
            if e.errno == errno.ENOENT:
                raise OutputError(f"{self.name} cannot be written: no file can be made there.") from None
            raise self.failed(e) from None

    def _open_standard_output(self) -> None:
        assert sys.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            self.fd = os.dup(sys.stdout.fileno())

    def failed(self, e: OSError) -> OutputError:
        """What to raise for an error of the system."""
        return OutputError(f"{'standard output' if self._standard else self.name} cannot be written: {reason(e)}.")

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """All of `data`, at once. A reader of standard output that went away is a `BrokenPipeError`."""
        view = memoryview(data)
        if not view.nbytes:
            return 0
        view = view.cast("B")
        try:
            if self.fd is None:
                sys.stdout.buffer.write(view)
                sys.stdout.buffer.flush()
                return len(view)
            left = view
            while left:
                left = left[os.write(self.fd, left) :]
        except BrokenPipeError:
            if self._standard:
                raise
            raise OutputError(f"{self.name}: its reader has gone away.") from None
        except OSError as e:
            raise self.failed(e) from None
        return len(view)

    def explain(self, unknown: str) -> OutputError:
        """Why a library could not write to `fd`, when it does not say: what happens to one more block. The file is lost anyway."""
        assert self.fd is not None
        try:
            os.lseek(self.fd, 0, os.SEEK_END)
            self.write(bytes(1 << 20))
            os.fsync(self.fd)
        except OutputError as e:
            return e
        except OSError as e:
            return self.failed(e)
        return OutputError(f"{self.name} cannot be written: {unknown}.")

    def flush(self) -> None:
        """Nothing waits: for libraries that ask."""

    def commit(self) -> None:
        """The output is whole: a regular file gets its name."""
        if self.fd is None:
            return
        try:
            if self._temporary is not None:
                _sync(self.fd)
                os.replace(self._temporary, self._place)
                unfinished.finished(self._temporary)
                self._temporary = None
            fd, self.fd = self.fd, None
            os.close(fd)
        except OSError as e:
            raise self.failed(e) from None

    def discard(self) -> None:
        """Remove what was written, unless it was committed. What went straight to its reader stays there."""
        if self.fd is not None:
            # A full disk can fail again when closing; the file goes away all the same.
            with contextlib.suppress(OSError):
                os.close(self.fd)
            self.fd = None
        if self._temporary is not None:
            unfinished.remove(self._temporary)
            self._temporary = None

    def __enter__(self) -> OutputFile:
        return self

    def __exit__(self, *_) -> None:
        self.discard()


def _sync(fd: int) -> None:
    """Past the system's caches: a new name must not come before its content."""
    try:
        os.fsync(fd)
    except OSError as e:
        # Some file systems have no such thing.
        if e.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_bytes(path: str | Path, content: bytes) -> None:
    """A small file, whole or not at all."""
    with OutputFile(path) as output:
        output.write(content)
        output.commit()


def write_text(path: str | Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all. Names that are not UTF-8 are written as JSON does it (`\\udcff`)."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def copy_file(source: str | Path, target: str | Path) -> None:
    """The bytes of a file under another name, whole or not at all."""
    with open(source, "rb") as file, OutputFile(target) as output:
        while piece := file.read(_COPY_BYTES):
            output.write(piece)
        output.commit()


def rename(path: str | Path, new: str | Path, asked: str | Path | None = None) -> None:
    """Give what was made beside its place its name. `asked` is the name that messages tell."""
    try:
        os.replace(path, new)
    except OSError as e:
        raise OutputError(f"{asked or new} cannot be made: {reason(e)}.") from None


# What is not whole until it ends ------------------------------------------------------------------------------------


def open_growing(path: str | Path) -> int:
    """A descriptor of a new file under its own name, for what has to be readable at every moment. Raises `OSError`."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)


def open_lock(path: str | Path) -> int:
    """A descriptor of a file that is only locked. Raises `OSError`."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o644)


def open_nowhere() -> int:
    """A descriptor for what nobody will read. Raises `OSError`."""
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


class ScratchFolder:
    """A folder for what other programs write and we read; gone at the end, whatever the end is."""

    def __init__(self) -> None:
        self.path = unfinished.temporary_name(Path(tempfile.gettempdir()), "moshi_mlx")
        try:
            os.mkdir(self.path, 0o700)
        except OSError as e:
            unfinished.finished(self.path)
            raise OutputError(f"no temporary folder can be made in {self.path.parent}: {reason(e)}.") from None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        unfinished.finished(self.path)
