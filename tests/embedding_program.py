"""Small programs that embed sessions, each run as a process of its own: `python embedding_program.py NAME CHECKPOINT`.

What they print and how they exit is what `test_session_threads` looks at.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np

from moshi_mlx import checkpoint
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.errors import MoshiError
from moshi_mlx.session import Session

SILENCE = np.zeros(1920, np.float32)


def threads() -> int:
    """Threads of this process that the system knows; one that has just ended may still be leaving."""
    fewest = len(os.listdir("/proc/self/task"))
    for _ in range(5):
        time.sleep(0.01)
        fewest = min(fewest, len(os.listdir("/proc/self/task")))
    return fewest


def told(*actions) -> None:
    """Print what each action is refused with."""
    for action in actions:
        try:
            action()
            print("accepted")
        except MoshiError as e:
            print(type(e).__name__, e)


def on_thread(action, daemon: bool = False) -> threading.Thread:
    thread = threading.Thread(target=action, daemon=daemon)
    thread.start()
    return thread


def child(action) -> None:
    """Run `action` in a forked child, print its exit code."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        action()
        sys.exit(3)
    print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


# Ends -----------------------------------------------------------------------------------------------------------------


def spawn_and_close(model: str) -> None:
    thread = Session.spawn(model, on_frame=print)
    thread.feed(SILENCE)
    thread.close()


def spawn_and_leave(model: str) -> None:
    Session.spawn(model, on_frame=lambda frame: None).feed(SILENCE)


def own_thread(model: str) -> None:
    on_thread(lambda: Session.load(model).step(SILENCE)).join()


def own_thread_not_waited_for(model: str) -> None:
    def talk() -> None:
        session = Session.load(model)
        for _ in range(10):
            session.step(SILENCE)

    on_thread(talk)


def session_outlives_its_thread(model: str) -> None:
    kept = []

    def talk() -> None:
        kept.append(Session.load(model))
        kept[0].step(SILENCE)

    on_thread(talk).join()
    told(lambda: kept[0].step(SILENCE))


def daemon_that_steps(model: str) -> None:
    begun = threading.Event()

    def talk() -> None:
        session = Session.load(model)
        while True:
            session.step(SILENCE)
            begun.set()

    on_thread(talk, daemon=True)
    begun.wait()


def daemon_that_waits(model: str) -> None:
    begun = threading.Event()

    def talk() -> None:
        session = Session.load(model)
        session.step(SILENCE)
        begun.set()
        while True:
            time.sleep(0.001)

    on_thread(talk, daemon=True)
    begun.wait()


def worker_of_a_pool(model: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        session = pool.submit(Session.load, model).result()
        print(pool.submit(session.step, SILENCE).result().index)


def language_model_on_a_thread(model: str) -> None:
    def talk() -> None:
        lm = checkpoint.load(model).lm
        LmGen(lm).step(mx.zeros((1, lm.cfg.other_codebooks), mx.int32))

    on_thread(talk).join()


# Threads and files --------------------------------------------------------------------------------------------------


def again_and_again(model: str, times: int = 20) -> None:
    """Threads, open files and memory (kB) after the tenth time, and the most of each afterwards."""
    seen = []
    for _ in range(times):
        replies: list = []
        thread = Session.spawn(model, on_frame=replies.append, seed=1)
        thread.feed(SILENCE)
        while not replies:
            time.sleep(0.001)
        thread.close()
        with open("/proc/self/statm") as f:
            resident = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1000
        seen.append((threads(), len(os.listdir("/proc/self/fd")), resident))
    print(*(max(column) for column in zip(*seen[:10], strict=True)))
    print(*(max(column) for column in zip(*seen[10:], strict=True)))


def own_threads_again_and_again(model: str) -> None:
    counts = []
    for _ in range(6):
        on_thread(lambda: Session.load(model).step(SILENCE)).join()
        counts.append(threads())
    print(*counts)


# Where a session may be used ----------------------------------------------------------------------------------------


def wrong_thread(model: str) -> None:
    session = Session.load(model, seed=1)
    lm = LmGen(session.lm)
    expected = [session.step(SILENCE).codes.tolist() for _ in range(3)]
    session.reset()
    state = session.state
    on_thread(
        lambda: told(
            lambda: session.step(SILENCE),
            session.reset,
            lambda: session.state,
            lambda: setattr(session, "state", state),
            lambda: lm.step(np.zeros((1, 8), np.int32)),
        )
    ).join()
    print([session.step(SILENCE).codes.tolist() for _ in range(3)] == expected)


def one_model_many_threads(model: str, *bits: int) -> None:
    """Loaded here and run elsewhere, where nobody has run it before; each thread is told the same."""
    loaded = checkpoint.load(model, quantized=bits[0] if bits else None)
    said: list = []

    def talk() -> None:
        said.append([Session(loaded, seed=1, compile=False).step(SILENCE).codes.tolist()])

    for _ in range(2):
        on_thread(talk).join()
    talk()
    print(said == [said[0]] * 3)


def forked_child(model: str) -> None:
    session = Session.load(model, seed=1)
    session.step(SILENCE)
    child(
        lambda: told(
            lambda: session.step(SILENCE),
            session.reset,
            lambda: session.state,
            lambda: Session.load(model),
            lambda: Session.spawn(model, on_frame=print),
        )
    )
    print(session.step(SILENCE).index)


def forked_with_a_thread(model: str) -> None:
    replies: list = []
    thread = Session.spawn(model, on_frame=replies.append)

    def use() -> None:
        told(lambda: thread.feed(SILENCE), lambda: thread.call(print))
        thread.close()

    child(use)
    thread.feed(SILENCE)
    while not replies:
        time.sleep(0.001)
    thread.close()
    print(replies[0].index)


def forked_after_other_work(model: str) -> None:
    """MLX was put to work, but not by us."""
    mx.eval(mx.ones(3) + 1)
    child(lambda: told(lambda: Session.load(model)))


def interrupted(model: str) -> None:
    """Interrupts at any moment of many frames: after each the conversation is before its frame or after it."""
    session = Session.load(model, seed=1, compile=False)
    expected = [session.step(SILENCE).codes.tolist() for _ in range(40)]
    session.reset()
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    moments = np.random.default_rng(0).uniform(0.0001, 0.02, 4000)
    interrupts, same = 0, True
    for moment in moments:
        if session.frames >= 40 or interrupts >= 40:
            break
        try:
            signal.setitimer(signal.ITIMER_REAL, moment)
            frame = session.step(SILENCE)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            interrupts += 1
            same = same and int(session.state["lm"]["offset"].item()) == session.frames + 1
        else:
            same = same and frame.codes.tolist() == expected[frame.index]
    print(interrupts > 10, same)


def forked_before_loading(model: str) -> None:
    child(lambda: print(Session.load(model).step(SILENCE).index, flush=True))
    print(Session.load(model).step(SILENCE).index)


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
