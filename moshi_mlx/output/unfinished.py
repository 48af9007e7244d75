"""What exists only until an output is whole. A name is noted before it comes to be, so that no signal falls between."""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
from pathlib import Path

_names: set[Path] = set()


def temporary_name(folder: Path, name: str) -> Path:
    """A hidden name in `folder` for the unfinished `name`, noted for removal."""
    # Names may be as long as the file system allows; what is put around them has to fit too.
    path = folder / f".{name[:40]}.{secrets.token_hex(4)}.part"
    _names.add(path)
    return path


def finished(path: Path) -> None:
    """It has its own name now, or is gone."""
    _names.discard(path)


def remove(path: Path) -> None:
    """A file or a folder, if it is there."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    finished(path)


def remove_unfinished() -> None:
    """Everything that no output of this process was made of."""
    for path in list(_names):
        remove(path)


atexit.register(remove_unfinished)
# A child has its parent's list, not its work.
os.register_at_fork(after_in_child=_names.clear)
