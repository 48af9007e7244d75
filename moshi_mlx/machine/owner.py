"""Who may use what MLX ties to one thread: the thread that made it, in the process that made it, until the program ends.

Used from elsewhere, MLX would fail for good, or wait for ever for threads that a forked child does not have. An `Owner` says so
before anything is touched.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable

from ..errors import InputError
from . import streams

# How long the end of the program waits: for a frame under way, for threads to come to their next one, and for those that did to end.
PATIENCE, NEXT, GOODBYE = 10.0, 0.25, 5.0

_here = threading.local()
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_closers: weakref.WeakSet[_Closer] = weakref.WeakSet()
_leaving: list[threading.Thread] = []
_ending = False


class Owner:
    """The thread that makes it. `with owner:` around every use of what is owned, which `what` names ("this session").

    A thread of the program's own that still steps when the program ends (a daemon) is let go at its next step, as by `sys.exit`:
    stopped inside MLX it would abort the process.
    """

    def __init__(self, what: str):
        streams.use()
        if not hasattr(_here, "token"):
            _here.token = object()
        # Numbers of threads are given again, tokens are not.
        self._token, self._process = _here.token, os.getpid()
        self._what, self.thread = what, threading.current_thread()
        self._busy = threading.RLock()
        if self.thread is not threading.main_thread():
            _owners.add(self)

    def check(self) -> None:
        """Raise `InputError` on any other thread, and in a forked child."""
        if os.getpid() != self._process:
            raise InputError(
                f"{self._what} belongs to the process that made it, and this is a forked child: it cannot be used here. Make "
                "one in a process of its own (multiprocessing.get_context('spawn'))."
            )
        if getattr(_here, "token", None) is not self._token:
            raise InputError(
                f"{self._what} belongs to the thread that made it ({self.thread.name}) and was used from another "
                f"({threading.current_thread().name}): use it there, or let Session.spawn give it a thread of its own."
            )

    def __enter__(self) -> None:
        self.check()
        self._busy.acquire()
        if _ending and self in _owners:
            self._busy.release()
            _leaving.append(threading.current_thread())
            raise SystemExit

    def __exit__(self, *_) -> None:
        self._busy.release()

    def idle(self, timeout: float) -> None:
        """Wait until nothing is under way."""
        if self._busy.acquire(timeout=timeout):
            self._busy.release()


class _Closer:
    """What is to be closed before the program ends."""

    def __init__(self, close: Callable[[], None]):
        self.close = close


def close_at_exit(close: Callable[[], None]) -> _Closer:
    """Have `close` called when the program ends, as long as the result is kept."""
    closer = _Closer(close)
    _closers.add(closer)
    return closer


@atexit.register
def _end() -> None:
    """Before the interpreter ends: nothing is under way in MLX on any thread."""
    global _ending
    if streams.started_here():
        for closer in list(_closers):
            closer.close()
        _ending = True
        for owner in list(_owners):
            owner.idle(PATIENCE)
        next_step = time.monotonic() + NEXT
        for owner in list(_owners):
            owner.thread.join(max(0.0, next_step - time.monotonic()))
        for thread in _leaving:
            thread.join(GOODBYE)
