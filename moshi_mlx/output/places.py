"""Where an output may go: told at once, not after the work is done."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from ..errors import OutputError

# Names of what the process has open already, on Linux and on macOS.
_DESCRIPTORS = re.compile(r"(?:/dev/fd|/proc/(?:self|thread-self|\d+)(?:/task/\d+)?/fd)/(\d+)")
_MOST_LINKS = 40


def reason(e: OSError) -> str:
    """Why, in words that go on a sentence."""
    text = e.strerror or str(e) or type(e).__name__
    return text[:1].lower() + text[1:]


def follow(path: str | Path) -> str:
    """The place a name stands for: links followed, up to an open descriptor, which is a place of its own."""
    place = os.path.abspath(path)
    for _ in range(_MOST_LINKS):
        folder, name = os.path.split(place)
        place = os.path.join(os.path.realpath(folder), name)
        if _DESCRIPTORS.fullmatch(place) or not os.path.islink(place):
            return place
        place = os.path.join(os.path.dirname(place), os.readlink(place))
    raise OutputError(f"{path} is a symbolic link that leads nowhere.")


def descriptor(place: str) -> int | None:
    """The descriptor that a followed name stands for."""
    found = _DESCRIPTORS.fullmatch(place)
    if found is None:
        return None
    process = place.split("/")[2] if place.startswith("/proc/") else "self"
    return int(found.group(1)) if process in ("self", "thread-self", str(os.getpid())) else None


def is_standard_output(path: str | Path) -> bool:
    """`-`, or another name of the same: `/dev/stdout`, `/dev/fd/1`."""
    return str(path) == "-" or descriptor(follow(path)) == 1


def refuse_terminal(path: str | Path) -> None:
    """Sound that would be shown as letters."""
    if is_standard_output(path) and sys.stdout is not None and sys.stdout.isatty():
        raise OutputError("standard output is a terminal; pipe the sound into a player, or name a file.")


def mode_of(place: str) -> int | None:
    """Type and permissions of what is there; None where there is nothing."""
    try:
        return os.stat(place).st_mode
    except FileNotFoundError:
        return None


def check_writable(path: str | Path) -> None:
    """Raises `OutputError` for what cannot become a file, or is no place to write to."""
    if is_standard_output(path):
        if sys.stdout is None:
            raise OutputError("standard output is closed; name a file.")
        return
    if not os.path.basename(path):
        raise OutputError(f"'{path}' is not the name of a file to write.")
    place = follow(path)
    folder = os.path.dirname(place)
    # Of a link, where it leads.
    shown = folder if os.path.islink(path) else os.path.dirname(path) or "."
    try:
        mode = mode_of(place)
    except (NotADirectoryError, PermissionError):
        mode = None
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {reason(e)}.") from None
    if mode is not None and stat.S_ISDIR(mode):
        raise OutputError(f"{path} is a folder; expected the name of a file to write.")
    if mode is not None and not os.access(place, os.W_OK):
        raise OutputError(f"{path} exists and is write-protected.")
    if mode is not None and not stat.S_ISREG(mode):
        return
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise OutputError(f"{shown} is a file; expected the folder of {os.path.basename(path)}.")
    if not os.path.isdir(folder):
        raise OutputError(f"the folder {shown} does not exist; make it first.")
    if not os.access(folder, os.W_OK):
        raise OutputError(f"the folder {shown} cannot be written to.")


def refuse_inputs(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output that is also an input or another output, under whatever name; None and standard streams are left out."""
    taken: list[tuple[str | Path, str]] = []
    for name in inputs:
        taken += [] if name is None or str(name) == "-" else [(name, "an input")]
    for path in outputs:
        if path is None or is_standard_output(path):
            continue
        for other, what in taken:
            if _same(path, other):
                raise OutputError(f"{path} is {what} too{_spelling(path, other)}; name another file for the output.")
        taken.append((path, "another output"))


def _same(a: str | Path, b: str | Path) -> bool:
    # What is no regular file (a terminal, a device) may well be read and written.
    with contextlib.suppress(OSError, ValueError):
        found, other = os.stat(a), os.stat(b)
        return stat.S_ISREG(found.st_mode) and os.path.samestat(found, other)
    with contextlib.suppress(OSError, ValueError):
        return follow(a) == follow(b)
    return False


def _spelling(path: str | Path, other: str | Path) -> str:
    return "" if str(path) == str(other) else f" (as {other})"


def check_folder(path: str | Path) -> None:
    """For folders that only receive files: there is one, or nothing yet."""
    if not str(path):
        raise OutputError("'' is no name of a folder.")
    if os.path.isdir(path):
        return
    if os.path.islink(path):
        raise OutputError(f"{path} is a symbolic link that leads to no folder.")
    if os.path.exists(path):
        raise OutputError(f"{path} is a file; expected a folder.")


def make_folder(path: str | Path) -> Path:
    """A folder for outputs, made where it is missing."""
    check_folder(path)
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise OutputError(f"{path} is a file; expected a folder.") from None
    except OSError as e:
        raise OutputError(f"the folder {path} cannot be made: {reason(e)}.") from None
    return Path(path)


def check_new_folder(path: str | Path) -> None:
    """For folders that are made as a whole: there is none yet, or an empty one, which is not where one stands."""
    check_folder(path)
    path = Path(path)
    if os.path.realpath(path) == os.path.realpath("."):
        raise OutputError("a folder made as a whole needs a name of its own; name a new one in this folder.")
    if path.is_dir():
        try:
            found = next(path.iterdir(), None)
        except OSError as e:
            raise OutputError(f"{path} cannot be looked into: {reason(e)}.") from None
        if found is not None:
            raise OutputError(f"{path} exists and is not empty. Remove it or name another folder.")
