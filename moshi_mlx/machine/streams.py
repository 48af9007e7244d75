"""Streams of MLX for the threads that load and step models.

MLX binds what it computes to streams of the thread, puts a thread of the system behind every CPU stream until the process ends, and
leaves what was compiled on a thread to be destroyed after Python has let go of it, perhaps while the interpreter ends: that aborts
the process. So every thread but the main one that is about to load or step asks here first (`use`). It borrows streams that an ended thread had
before, and when it ends itself, what was compiled on it is dropped while Python still stands, and the streams go back: as many are
ever made as threads were at work at the same time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time

import mlx.core as mx

from ..errors import InputError

_lent = threading.local()
_free: dict[bool, list[mx.Stream]] = {False: [], True: []}  # by whether they are the GPU's
_lock = threading.Lock()
# The process in which MLX was first put to work; a forked child has its memory, but none of its threads.
_process: int | None = None
# Whether this process is a forked child, whose parent may have used MLX without us.
_forked = False
# How long MLX may take for a sum before it is taken to wait for threads that do not exist here.
_PROBE_SECONDS = 5.0


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


class _Loan:
    """Streams of one thread, given back by the end of the thread, which destroys its locals."""

    def __init__(self) -> None:
        self.streams: list[tuple[bool, mx.Stream]] = []
        self.process, self.thread = os.getpid(), threading.get_ident()

    def take(self, gpu: bool) -> mx.Stream:
        stream = _take(gpu)
        self.streams.append((gpu, stream))
        return stream

    def __del__(self) -> None:
        if os.getpid() != self.process or threading.get_ident() != self.thread or sys.is_finalizing():
            return
        for _, stream in self.streams:
            # What failed on it was told to who waited for it.
            with contextlib.suppress(RuntimeError):
                mx.synchronize(stream)
        mx.clear_streams()
        with _lock:
            for gpu, stream in self.streams:
                _free[gpu].append(stream)


def _take(gpu: bool) -> mx.Stream:
    with _lock:
        if _free[gpu]:
            return _free[gpu].pop()
    # Bound to no thread: one after the other may use it.
    return mx.new_thread_unsafe_stream(mx.gpu if gpu else mx.cpu)


def use() -> None:
    """To be called on a thread before it loads or steps anything. Raises `InputError` in a forked child of a process that did."""
    global _process
    if _process is None and (not _forked or _works()):
        _process = os.getpid()
    elif _process != os.getpid():
        raise InputError(
            "this process is a forked child of one that had loaded a model or used MLX, which cannot work in it: fork before that, or "
            "start the child anew (multiprocessing.get_context('spawn'))."
        )
    if hasattr(_lent, "loan") or threading.current_thread() is threading.main_thread():
        return
    _lent.loan = _Loan()
    for gpu in {False, mx.default_device() == mx.gpu}:
        mx.set_default_stream(_lent.loan.take(gpu))


def _works() -> bool:
    """Whether MLX works in this forked child. A child of its own tries it, since what does not work waits for ever."""
    pid = os.fork()
    if not pid:
        try:
            mx.eval(mx.zeros(1) + 1)
            os._exit(0)
        finally:
            os._exit(1)
    deadline = time.monotonic() + _PROBE_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def started_here() -> bool:
    """Whether this process, and not one it was forked from, has put MLX to work."""
    return _process == os.getpid()


def more(count: int) -> list[mx.Stream]:
    """`count` further CPU streams for this thread, until it ends."""
    use()
    take = _lent.loan.take if hasattr(_lent, "loan") else _take
    return [take(False) for _ in range(count)]
