"""libmpg123, inside libsndfile, writes to standard error of the process whatever it finds odd in a file that it reads well."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator

_MARK = b"libmpg123"
_ALSO = b"Warning: Xing stream size"


@contextlib.contextmanager
def without_decoder_messages() -> Iterator[None]:
    """Standard error without them; what others write meanwhile comes through, a moment later."""
    try:
        real = os.dup(2)
    except OSError:
        # There is no standard error.
        yield
        return
    ours, theirs = os.pipe()
    for end in (ours, theirs):
        # Too many messages are lost rather than waited for.
        fcntl.fcntl(end, fcntl.F_SETFL, fcntl.fcntl(end, fcntl.F_GETFL) | os.O_NONBLOCK)
    os.dup2(theirs, 2)
    os.close(theirs)
    try:
        yield
    finally:
        os.dup2(real, 2)
        with contextlib.suppress(OSError):
            while said := os.read(ours, 1 << 16):
                lines = [x for x in said.splitlines(keepends=True) if _MARK not in x and _ALSO not in x]
                os.write(real, b"".join(lines))
        os.close(real)
        os.close(ours)
