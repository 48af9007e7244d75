"""Who may use what MLX ties to one thread: the thread that made it, in the process that made it, until the program ends.

Used from elsewhere, MLX would fail for good, or wait for ever for threads that a forked child does not have. An `Owner` says so
before anything is touched.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import threading
import time
import weakref
from collections.abc import Callable

from ..errors import InputError
from . import streams

# How long the end of the program waits for a frame under way, and then for threads to see that it is over.
PATIENCE, GOODBYE = 10.0, 1.0

_here = threading.local()
_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
_closers: weakref.WeakSet[Closer] = weakref.WeakSet()


class Owner:
    """The thread that makes it. `with owner:` around every use of what is owned, which `what` names ("this session")."""

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

    def __enter__(self) -> None:
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
        self._busy.acquire()

    def __exit__(self, *_) -> None:
        self._busy.release()

    def idle(self, timeout: float) -> None:
        """Wait until nothing is under way."""
        if self._busy.acquire(timeout=timeout):
            self._busy.release()


class Closer:
    """What is to be closed before the program ends, for as long as this is kept."""

    def __init__(self, close: Callable[[], None]):
        self.close = close
        _closers.add(self)


@atexit.register
def _end() -> None:
    """Before the interpreter ends: no thread that works with MLX is left, since one that is stopped inside it aborts the process.

    Daemon threads of the program's own are let go as by `sys.exit`, between two frames.
    """
    if not streams.started_here():
        return
    for closer in list(_closers):
        closer.close()
    left = {owner.thread: owner for owner in list(_owners) if owner.thread.is_alive() and owner.thread.daemon}
    left.pop(threading.current_thread(), None)
    for thread in left:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
    for owner in list(_owners):
        if owner.thread in left:
            owner.idle(PATIENCE)
    deadline = time.monotonic() + GOODBYE
    for thread in left:
        if not isinstance(thread, threading._DummyThread):  # type: ignore[attr-defined]
            thread.join(max(0.0, deadline - time.monotonic()))
