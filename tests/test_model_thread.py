"""One thread for several models: whose turn it is, and what becomes of the others when one ends."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from test_scheduler import FRAME, LONG, StandIn, opened, sound, until

from moshi_mlx.engine import model_thread
from moshi_mlx.engine.model_thread import ModelThread
from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.engine.streams import Bounds, ModelStopped, WhenFull
from moshi_mlx.errors import InputError

DEEP = Bounds(120.0, 4096, WhenFull.DROP)


class Noted(StandIn):
    """Notes its name for every step in a list that all share."""

    def __init__(self, name, notes, **options):
        super().__init__(**options)
        self.name, self.notes = name, notes

    def step(self, given):
        self.notes.append(self.name)
        return super().step(given)


@pytest.fixture
def home():
    with ModelThread() as thread:
        yield thread


def trio(home, notes, **options):
    kinds = [lambda n=n: Noted(n, notes, bounds=DEEP, **options) for n in "abc"]
    return [Scheduler(kind, thread=home, patience=0.0) for kind in kinds]


def test_the_first_comes_first_and_the_last_is_not_starved(home):
    """With a backlog everywhere nobody is passed over more often than told, and a frame for the first is next but for those."""
    notes: list[str] = []
    gate = threading.Event()
    schedulers = trio(home, notes)
    streams = [opened(s) for s in schedulers]
    schedulers[0].call(lambda kind: gate.wait(LONG))
    for stream in streams:
        stream.feed(sound(60))
    gate.set()
    for stream in streams:
        until(lambda s=stream: s.buffered == 0)
    assert notes[:2] == ["a", "a"] and {"b", "c"} <= set(notes[:5])
    for name in "bc":
        at = [i for i, n in enumerate(notes) if n == name]
        # Two that were passed over too often may come one behind the other.
        assert max(np.diff([-1, *at])) <= model_thread.TURNS_PASSED + 2
    assert [notes.count(n) for n in "abc"] == [60, 60, 60]


def test_a_backlog_below_holds_nobody_up_above(home):
    """Frames in real time wait for about a step, though two other kinds never rest."""
    notes: list[str] = []
    talk, *others = trio(home, notes, seconds=0.004)
    deep = [opened(s) for s in others]
    for stream in deep:
        stream.feed(sound(400))
    live = opened(talk)
    for _ in range(20):
        live.feed(sound(1))
        time.sleep(0.03)
    until(lambda: live.buffered == 0)
    assert all(s.buffered > 0 for s in deep)
    # A step of each of the others, and as much again for a busy machine.
    assert talk.figures().worst_wait < 0.25
    assert len([n for n in notes if n == "c"]) > len(notes) // 4


def test_what_one_raises_ends_that_one_alone(home):
    notes: list[str] = []
    first, second, _ = trio(home, notes)
    broken, other = opened(first), opened(second)
    broken.feed(sound(1, -0.5))
    until(lambda: broken.ended)
    assert isinstance(broken.error, ModelStopped) and str(first.error) == "the model broke"
    assert not first.running and second.running and home.running
    other.feed(sound(3))
    until(lambda: other.waiting_items == 3)
    with pytest.raises(ModelStopped, match="not running"):
        first.open()


def test_one_may_close_and_the_others_go_on(home):
    notes: list[str] = []
    first, second, _ = trio(home, notes)
    stream, other = opened(first), opened(second)
    first.close()
    first.close()
    assert stream.ended and not first.running and first.error is None
    other.feed(sound(1))
    assert other.read(LONG).number == 0
    home.close()
    assert other.ended and not second.running
    with pytest.raises(InputError, match="has ended"):
        Scheduler(StandIn, thread=home)


def test_a_model_that_cannot_be_made_is_told_and_the_others_go_on(home):
    first, *_ = trio(home, [])

    def make():
        raise InputError("no such model")

    with pytest.raises(InputError, match="no such model"):
        Scheduler(make, thread=home)
    stream = opened(first)
    stream.feed(sound(1))
    assert stream.read(LONG).number == 0


def test_all_are_made_and_stepped_on_the_same_thread(home):
    schedulers = trio(home, [])
    threads = {s.call(lambda kind: (kind.thread, threading.current_thread())).result(LONG) for s in schedulers}
    assert len(threads) == 1 and len(set(next(iter(threads)))) == 1


def test_stragglers_of_one_kind_are_not_waited_for_while_another_has_work(home):
    """The moment of patience is used for others' steps."""
    notes: list[str] = []
    patient = Scheduler(lambda: Noted("p", notes, bounds=DEEP), thread=home, patience=0.3)
    other = Scheduler(lambda: Noted("o", notes, bounds=DEEP), thread=home, patience=0.0)
    early, late = opened(patient), opened(patient)
    for stream in (early, late):
        stream.feed(sound(1))
    until(lambda: not early.buffered and not late.buffered)
    busy = opened(other)
    early.feed(np.full(FRAME, 0.25, np.float32))
    busy.feed(sound(20))
    until(lambda: busy.buffered == 0)
    assert early.buffered == FRAME
    until(lambda: early.buffered == 0)
    assert notes[-1] == "p"


def test_work_done_before_anybody_is_served(home):
    assert home.run(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        home.run(lambda: 1 // 0)
    assert home.run(lambda: 2) == 2
    home.close()
    with pytest.raises(InputError, match="has ended"):
        home.run(lambda: 2)
