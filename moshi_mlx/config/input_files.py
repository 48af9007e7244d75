"""Files that are read, looked at before they are opened: regular ones only, of bounded size.

A pipe in place of a file would be waited for, and a link to a device read, for ever.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from ..errors import CheckpointError, MoshiError, clean, quoted

_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}  # fmt: skip


def file_size(path: str | Path, error: type[MoshiError] = CheckpointError) -> int:
    """Bytes of a regular file, links followed. Raises `error` where there is none."""
    try:
        found = os.stat(path)
    except (OSError, ValueError) as e:
        if os.path.islink(path) and getattr(e, "errno", None) in (errno.ENOENT, errno.ELOOP):
            raise error(f"{path} is a symbolic link that leads nowhere; put the file itself there.") from None
        if isinstance(e, FileNotFoundError):
            raise error(f"{path} does not exist.") from None
        raise error(f"{path} cannot be read: {reason(e)}.") from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "no regular file")
        raise error(f"{path} is {kind}; a file is expected.")
    return found.st_size


def read_bytes(path: str | Path, largest: int, error: type[MoshiError] = CheckpointError) -> bytes:
    """The content of a regular file of at most `largest` bytes. Raises `error`."""
    size = file_size(path, error)
    if size > largest:
        raise error(f"{path} has {size} bytes; at most {largest} are expected of such a file.")
    try:
        with open(path, "rb") as file:
            # Some files of the system say that they are empty and are not.
            content = file.read(largest + 1)
    except OSError as e:
        raise error(f"{path} cannot be read: {reason(e)}.") from None
    if len(content) > largest:
        raise error(f"{path} has more than the {largest} bytes expected of such a file.")
    return content


def name_for_mlx(path: str | Path, error: type[MoshiError] = CheckpointError) -> str:
    """`path` as MLX takes it, which is UTF-8."""
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        raise error(f"the name of {name} is not UTF-8, which MLX cannot open; rename it or its folder.") from None
    return name


def check_name(name: object, where: str, error: type[MoshiError] = CheckpointError) -> None:
    """Raise `error` for what cannot be the name of a file below `where`: no text, empty, absolute, upwards, unprintable."""
    text = name if isinstance(name, str) else ""
    parts = text.split("/")
    if not text or len(text) > 1000 or clean(text) != text or any(len(p.encode()) > 255 for p in parts):
        raise error(f"{where}: {quoted(name)} is not the name of a file.")
    if any(p in ("", ".", "..") for p in parts):
        raise error(f"{where}: the file name {quoted(name)} points outside the checkpoint, which is refused.")


def reason(problem: OSError | ValueError) -> str:
    """Why the system refused a file, in words."""
    return getattr(problem, "strerror", None) or str(problem)
