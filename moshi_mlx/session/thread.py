"""A session on a thread of its own, for programs whose threads are taken: windows, event loops, servers.

thread = Session.spawn(model="path/to/folder", on_frame=show)   # returns when the model is loaded
thread.feed(pcm)                                                # any thread but one at a time; never blocks
state = thread.call(lambda session: session.state).result()     # run on the model's thread, between frames
thread.close()
"""

from __future__ import annotations

import gc
import os
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, Protocol, TypeVar

import mlx.core as mx
import numpy as np

from .. import arguments
from ..audio.capture import MAX_LAG, Capture
from ..audio.samples import as_block, refuse_nonsense
from ..errors import InputError
from ..machine import streams
from ..machine.owner import PATIENCE, Closer

CALLS_WAITING = 64


class Stepped(Protocol):
    """What the thread asks of a session."""

    batch: int

    @property
    def sample_rate(self) -> int: ...

    @property
    def frame_size(self) -> int: ...

    def step(self, pcm: np.ndarray) -> Any: ...


S = TypeVar("S", bound=Stepped)
T = TypeVar("T")


class SessionThread(Generic[S]):
    """Loads and steps a session on its own thread (MLX keeps models to the thread that made them).

    `make()` makes the session there; `on_frame(frame)` gets every reply there, and should be quick. `on_error(exception)` is
    told on that thread when stepping or `on_frame` fails, which ends the thread. The user's sound waits at most `max_lag`
    seconds behind the frame that is due; the oldest is dropped and counted. May be used as a context manager. What is still open
    when the program ends is closed then.
    """

    def __init__(
        self,
        make: Callable[[], S],
        on_frame: Callable[[Any], Any],
        on_error: Callable[[BaseException], Any] | None = None,
        max_lag: float = MAX_LAG,
    ):
        arguments.function("on_frame", on_frame)
        arguments.function("on_error", on_error or print)
        self._make, self._on_frame, self._on_error = make, on_frame, on_error
        self._calls: queue.Queue[tuple[Callable[[S], Any], Future]] = queue.Queue(CALLS_WAITING)
        self._closing = threading.Event()
        # Nobody asks for what nobody will answer.
        self._asking, self._ended = threading.Lock(), False
        self._loaded: Future[None] = Future()
        self._max_lag, self._process = arguments.number("max_lag", max_lag, 0), os.getpid()
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self._thread.start()
        self._closer = Closer(self._end)
        try:
            # What loading raised is raised here.
            self._loaded.result()
        except Exception:
            self._thread.join()
            raise

    def feed(self, pcm: np.ndarray) -> None:
        """The user's next samples `[n]`, 24 kHz mono, any n: floats in -1..1 or whole numbers scaled by their type.

        From one thread at a time, which never waits. Samples that are not numbers are heard as silence and counted in `invalid`.
        """
        self._check_process()
        sound = as_block(pcm)
        refuse_nonsense(sound[np.isfinite(sound)])
        self._capture.feed(sound)

    def call(self, action: Callable[[S], T]) -> Future[T]:
        """Run `action(session)` on the model's thread before its next frame: read or set `state`, `reset`.

        On that thread itself (in `on_frame`, in another action) it is run at once, so that its result can be waited for there too.
        """
        self._check_process()
        arguments.function("what is called", action)
        future: Future[T] = Future()
        with self._asking:
            if self._ended:
                raise InputError("the session's thread has ended.")
            try:
                self._calls.put_nowait((action, future))
            except queue.Full:
                raise InputError(f"{CALLS_WAITING} calls wait for the session already.") from None
        if threading.current_thread() is self._thread:
            self._answer_calls()
        else:
            self._capture.wake()
        return future

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise InputError(
                "this session's thread is in the process that made it, and this is a forked child: make one in a process of its "
                "own (multiprocessing.get_context('spawn'))."
            )

    @property
    def dropped(self) -> int:
        """Frames of the user's sound lost because the model was late."""
        return self._capture.dropped

    @property
    def invalid(self) -> int:
        """Samples of the user's sound that were not numbers, heard as silence."""
        return self._capture.invalid

    @property
    def lag(self) -> float:
        """Seconds fed and not yet stepped."""
        return self._capture.waiting

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """End the thread after the frame under way. Not to be called from `on_frame` with a wait: it returns at once there."""
        self._end(None)

    def _end(self, timeout: float | None = PATIENCE) -> None:
        if os.getpid() != self._process:
            # There is no such thread here.
            return
        self._closing.set()
        capture = getattr(self, "_capture", None)
        if capture is not None:
            capture.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def __enter__(self) -> SessionThread[S]:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    # The model's thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._talk()
        finally:
            # Weights and compiled functions hold each other: all of it goes now and here, not some day on another thread.
            gc.collect()
            # In a forked child, which was told that it cannot load anything, this would wait for ever.
            if streams.started_here():
                mx.clear_cache()

    def _talk(self) -> None:
        try:
            session = self._make()
            if session.batch != 1:
                raise InputError(f"a session on its own thread holds one conversation, found {session.batch}.")
            self._capture = Capture(session.sample_rate, session.frame_size, session.sample_rate, max_lag=self._max_lag)
        except BaseException as e:
            self._closing.set()
            self._loaded.set_exception(_without_locals(e))
            return
        self._session = session
        self._loaded.set_result(None)
        try:
            while not self._closing.is_set():
                self._answer_calls()
                pcm = self._capture.read(timeout=60.0)
                if pcm is not None and not self._closing.is_set():
                    self._on_frame(session.step(pcm))
        except BaseException as e:
            self.error = e
            if self._on_error is not None:
                self._on_error(e)
        finally:
            del session, self._session
            self._closing.set()
            self._refuse_calls()
            if self.error is not None:
                _without_locals(self.error)

    def _answer_calls(self) -> None:
        while not self._calls.empty():
            action, future = self._calls.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(action(self._session))
                except BaseException as e:
                    future.set_exception(e)

    def _refuse_calls(self) -> None:
        with self._asking:
            self._ended = True
        while not self._calls.empty():
            _, future = self._calls.get()
            future.cancel()


def _without_locals(error: BaseException) -> BaseException:
    """`error`, whose traceback would keep the model in memory as long as somebody keeps it."""
    traceback.clear_frames(error.__traceback__)
    return error
