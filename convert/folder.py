"""The folder a command makes: built under another name, complete when it gets its own (or it does not get it at all).

An interrupted run leaves `.NAME.part` beside it, which the same command continues; a failed one leaves nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moshi_mlx.errors import InputError, MoshiError, OutputError
from moshi_mlx.output import check_new_folder, copy_file, open_lock, reason, rename, write_text

_JOB, _LOCK = ".job.json", ".lock"


@contextlib.contextmanager
def building(destination: Path, job: Any) -> Iterator[Path]:
    """The unfinished folder. It becomes `destination` at the end; a `MoshiError` removes it, an interrupt leaves it.

    `job` (plain data) says everything the result depends on: what an earlier run with another job left is thrown away.
    """
    check_new_folder(destination)
    place = destination.resolve() if destination.is_symlink() else destination
    part = place.with_name(f".{place.name}.part")
    if part.is_symlink() or (part.exists() and not part.is_dir()):
        raise InputError(f"{part} is in the way; remove it.")
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{destination} cannot be made: {reason(e)}.") from None
    with _locked(part, destination):
        try:
            _keep_only_same_job(part, job)
            yield part
            _finish(part, place)
        except MoshiError as e:
            shutil.rmtree(part, ignore_errors=True)
            # The name that was asked for, not the one it had until now.
            told = str(e).replace(str(part), str(destination))
            raise (e if told == str(e) else type(e)(told)) from None
        except BrokenPipeError:
            # Nobody reads what is said any more; the folder can be finished another time.
            raise
        except OSError as e:
            # A full disk can show itself in any write.
            shutil.rmtree(part, ignore_errors=True)
            raise OutputError(f"{destination} cannot be written: {reason(e)}.") from None


@contextlib.contextmanager
def _locked(part: Path, destination: Path) -> Iterator[None]:
    handle = open_lock(part / _LOCK)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another run is making {destination}; wait for it, or name another folder.") from None
        yield
    finally:
        os.close(handle)


def _keep_only_same_job(part: Path, job: Any) -> None:
    digest = hashlib.sha256(json.dumps(job, sort_keys=True, default=str).encode()).hexdigest()
    record = part / _JOB
    if not record.is_file() or record.read_text() != digest:
        for entry in part.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        write_text(record, digest)


def _finish(part: Path, destination: Path) -> None:
    for entry in (part / _JOB, part / _LOCK):
        entry.unlink(missing_ok=True)
    for stray in part.rglob(".*.part"):
        # Of a run that was ended by force.
        stray.unlink(missing_ok=True)
    rename(part, destination)
    # Not every file system can do this.
    with contextlib.suppress(OSError):
        folder = os.open(destination.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def copy(source: Path, target: Path) -> None:
    """The bytes of a file, unless an earlier run copied them."""
    if target.is_file() and not target.is_symlink() and target.stat().st_size == source.stat().st_size:
        return
    copy_file(source, target)


def written(folder: Path) -> int:
    """Bytes in a folder, 0 without one."""
    return sum(entry.stat().st_size for entry in folder.rglob("*") if entry.is_file()) if folder.is_dir() else 0
