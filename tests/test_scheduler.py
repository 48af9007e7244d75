"""The scheduler: bounds, fairness, waits and drops, with a stand-in for the model; and with a model, beside sessions alone."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import CancelledError
from dataclasses import dataclass, replace

import numpy as np
import pytest
from row_drivers import in_pieces, noise
from speech_toys import _tidy, checkpoint, loaded  # noqa: F401

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.engine.kind import Outcome
from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.engine.streams import Bounds, Inbox, ModelStopped, NoFreeRow, SlowReader, WhenFull
from moshi_mlx.errors import InputError
from moshi_mlx.session import Session
from moshi_mlx.session.conversations import Conversations, Talk
from moshi_mlx.speech_to_text.rows import Hear, HeardFrame, Marker, Transcriptions
from moshi_mlx.text_to_speech.rows import Speak, Utterances
from moshi_mlx.text_to_speech.tts_model import TTSModel

FRAME = 1920
LONG = 20.0


@dataclass(frozen=True)
class Item:
    number: int
    text: str
    first: float


class StandIn:
    """Rows that answer every frame with its first sample. `gate`: steps wait for it; `seconds`: what a step takes."""

    def __init__(self, rows=2, bounds=None, seconds=0.0, pieces=1):
        self.rows, self.seconds, self.pieces = rows, seconds, pieces
        self.bounds = bounds or Bounds(2.0, 64, WhenFull.DROP)
        self.gate = threading.Event()
        self.gate.set()
        self.steps: list[list[int]] = []
        self.thread = threading.current_thread()
        self.frames = [0] * rows

    def join(self, row, options):
        assert threading.current_thread() is self.thread
        for _ in range(self.pieces):
            yield
        if options == "refused":
            raise InputError("this voice does not exist.")
        if options == "broken":
            raise KeyError("broken")
        self.frames[row] = 0

    def leave(self, row):
        pass

    def ready(self, row, inbox):
        return inbox.has_frame or inbox.at_end

    def collect(self, row, inbox):
        if not inbox.has_frame:
            return None
        frame = inbox.frame()
        if frame[0] == np.float32(-1.0):
            raise InputError("this cannot be said.")
        if frame[0] == np.float32(-0.75):
            raise KeyError("broken")
        return frame

    def step(self, given):
        self.gate.wait(LONG)
        time.sleep(self.seconds)
        self.steps.append(sorted(given))
        if any(frame is not None and frame[0] == np.float32(-0.5) for frame in given.values()):
            raise RuntimeError("the model broke")
        out = {}
        for row, frame in given.items():
            items = []
            if frame is not None:
                items = [Item(self.frames[row], f"{self.frames[row]} ", float(frame[0]))]
                self.frames[row] += 1
            out[row] = Outcome(items, done=frame is None)
        return out


@pytest.fixture
def run():
    """`run(**options)`: a scheduler of a stand-in, and the stand-in; closed at the end."""
    made = []

    def start(patience=0.0, **options):
        scheduler = Scheduler(lambda: StandIn(**options), patience=patience)
        made.append(scheduler)
        return scheduler, scheduler.call(lambda kind: kind).result()

    yield start
    for scheduler in made:
        scheduler.close()


def sound(frames: int, value: float = 0.25) -> np.ndarray:
    return np.full(frames * FRAME, value, np.float32)


def until(condition, timeout=LONG):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def read_all(stream, timeout=LONG) -> list[Item]:
    items, deadline = [], time.monotonic() + timeout
    while not stream.ended:
        assert time.monotonic() < deadline
        item = stream.read(0.1)
        items += [] if item is None else [item]
    return items


def opened(scheduler, *options, **how):
    stream = scheduler.open(*options, **how)
    assert stream.wait_open(LONG)
    return stream


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_sound_for_a_slow_model_is_dropped_oldest_first_and_counted(run):
    scheduler, kind = run()
    stream = opened(scheduler)
    kind.gate.clear()
    assert stream.feed(sound(1, 0.5)) == 0
    until(lambda: stream.buffered == 0)
    # Ten seconds while a step lasts: two may wait.
    lost = sum(stream.feed(np.full(FRAME, n / 1000, np.float32)) for n in range(125))
    assert (lost, stream.dropped_in, stream.buffered) == (100 * FRAME, 100 * FRAME, 25 * FRAME)
    kind.gate.set()
    stream.finish()
    items = read_all(stream)
    # The first frame after a gap is faded in.
    assert [round(1000 * i.first) for i in items] == [500, 0, *range(101, 125)]
    assert scheduler.figures().dropped_in == 100 * FRAME


def test_an_upload_waits_for_room(run):
    scheduler, kind = run(seconds=0.001, bounds=Bounds(2.0, 1000, WhenFull.DROP))
    stream = opened(scheduler, live=False)
    assert sum(stream.feed(sound(10), timeout=LONG) for _ in range(20)) == 0
    stream.finish()
    assert len(read_all(stream)) == 200
    assert stream.dropped_in == 0
    # Without room for so long, the rest is dropped all the same.
    late = opened(scheduler)
    kind.gate.clear()
    late.feed(sound(1))
    until(lambda: late.buffered == 0)
    assert late.feed(sound(25)) == 0
    assert late.feed(sound(1), timeout=0.05) == FRAME
    kind.gate.set()


def test_a_block_of_no_samples_is_nothing():
    inbox, frames = Inbox(Bounds(2.0, 64, WhenFull.DROP), threading.Condition()), []
    for block in (sound(0), sound(1)[:700], sound(0), sound(1)[700:]):
        assert inbox.feed(block) == 0
    # It was gone round for ever.
    taking = threading.Thread(target=lambda: frames.append(inbox.frame()), daemon=True)
    taking.start()
    taking.join(LONG)
    np.testing.assert_array_equal(frames, [sound(1)])


def test_a_talk_that_is_never_read_loses_its_oldest_sound_and_no_word(run):
    scheduler, _ = run(
        bounds=Bounds(60.0, 8, WhenFull.DROP, fold=lambda old, new: replace(new, text=old.text + new.text))
    )
    silent, other = opened(scheduler), opened(scheduler)
    silent.feed(sound(50))
    silent.finish()
    other.feed(sound(50))
    other.finish()
    # Who reads gets everything.
    until(lambda: silent._over)
    assert (silent.waiting_items, silent.dropped_out) == (8, 42)
    items = read_all(silent)
    assert [i.number for i in items] == list(range(42, 50))
    assert "".join(i.text for i in items) == "".join(f"{n} " for n in range(50))
    assert scheduler.figures().dropped_out == 42 + other.dropped_out


def test_a_transcription_that_is_never_read_is_ended(run):
    scheduler, _ = run(bounds=Bounds(60.0, 8, WhenFull.END))
    silent, other = opened(scheduler), opened(scheduler)
    silent.feed(sound(50))
    until(lambda: silent._over)
    assert isinstance(silent.error, SlowReader)
    assert "8 results wait to be read" in str(silent.error)
    # What it had stays readable, and the row is free.
    assert [i.number for i in read_all(silent)] == list(range(8))
    opened(scheduler, wait=False)
    other.feed(sound(1))
    assert other.read(LONG) is not None


def test_an_utterance_that_is_never_read_stands_still(run):
    scheduler, kind = run(bounds=Bounds(60.0, 8, WhenFull.PAUSE))
    silent, other = opened(scheduler), opened(scheduler)
    silent.feed(sound(50))
    silent.finish()
    until(lambda: silent.waiting_items == 8)
    other.feed(sound(5))
    assert [other.read(LONG).number for _ in range(5)] == list(range(5))
    assert sum(0 in rows for rows in kind.steps) == 8
    assert [i.number for i in read_all(silent)] == list(range(50))
    assert silent.dropped_out == 0


def test_text_that_waits_is_bounded(run):
    scheduler, _ = run(bounds=Bounds(0.0, 8, WhenFull.PAUSE, characters=10))
    stream = opened(scheduler)
    stream.say("12345")
    with pytest.raises(InputError, match="more than 10 characters wait"):
        stream.say("123456")


# Fairness -------------------------------------------------------------------------------------------------------------


def test_everybody_with_a_frame_is_in_every_step(run):
    scheduler, kind = run(rows=3, bounds=Bounds(60.0, 1000, WhenFull.DROP))
    streams = [opened(scheduler) for _ in range(3)]
    kind.gate.clear()
    for stream, frames in zip(streams, (20, 50, 5), strict=True):
        stream.feed(sound(frames))
        stream.finish()
    kind.gate.set()
    assert [len(read_all(s)) for s in streams] == [20, 50, 5]
    rows = kind.steps[1:]  # the first may have begun before all were fed
    assert all(0 in r for r in rows[:18])
    assert all(2 in r for r in rows[:3])
    assert len(kind.steps) <= 55


def test_a_minute_of_backlog_delays_nobody_else(run):
    """Bounds hold, the backlog goes at the model's speed, and a frame beside it waits for no more than two steps."""
    scheduler, _ = run(seconds=0.004, bounds=Bounds(120.0, 2000, WhenFull.DROP))
    late, live = opened(scheduler), opened(scheduler)
    begin = time.monotonic()
    assert late.feed(sound(750)) == 0
    late.finish()
    waits = []
    while not late._over:
        fed = time.monotonic()
        live.feed(sound(1))
        assert live.read(LONG) is not None
        waits.append(time.monotonic() - fed)
        time.sleep(0.02)
    taken = time.monotonic() - begin
    assert len(read_all(late)) == 750
    # As fast as it goes: far below the minute that it lasts.
    assert taken < 750 * 0.004 * 5
    figures = scheduler.figures()
    assert figures.steps >= 750
    # The step under way, then its own: on a machine whose threads wait for each other, most of the time.
    assert np.median(waits) < 4 * max(figures.p50, 0.004)


def test_a_step_waits_a_moment_for_who_is_about_due(run):
    scheduler, kind = run(patience=3.0)
    first, second = opened(scheduler), opened(scheduler)
    for stream in (first, second):
        stream.feed(sound(1))
    assert first.read(LONG) and second.read(LONG)
    kind.steps.clear()
    first.feed(sound(1))
    time.sleep(0.03)
    second.feed(sound(1))
    assert first.read(LONG) and second.read(LONG)
    assert kind.steps == [[0, 1]]
    # Not for somebody who has been silent for long, nor when there is a backlog.
    time.sleep(0.3)
    begin = time.monotonic()
    first.feed(sound(1))
    assert first.read(LONG)
    assert time.monotonic() - begin < 2.5


# Rows -----------------------------------------------------------------------------------------------------------------


def test_who_waits_for_a_row(run):
    scheduler, _ = run(rows=2)
    first, second = opened(scheduler), opened(scheduler)
    with pytest.raises(NoFreeRow, match="all 2 rows are taken"):
        scheduler.open(wait=False)
    upload, third, fourth = scheduler.open(live=False), scheduler.open(), scheduler.open()
    # Live streams go before uploads.
    assert (third.place, fourth.place, upload.place) == (1, 2, 3)
    assert not third.wait_open(0.01)
    third.close()
    until(lambda: third.ended)
    assert (fourth.place, upload.place) == (1, 2)
    first.close()
    assert fourth.wait_open(LONG)
    assert fourth.place == 0
    # One row is free and nobody live waits: it is kept for who comes.
    second.close()
    until(lambda: scheduler.live == 1)
    assert not upload.wait_open(0.05)
    opened(scheduler, wait=False).close()
    fourth.close()
    assert upload.wait_open(LONG)


def test_a_single_row_takes_uploads_too(run):
    scheduler, _ = run(rows=1)
    assert scheduler.open(live=False).wait_open(LONG)


def test_others_go_on_while_somebody_joins(run):
    scheduler, kind = run(pieces=20, seconds=0.002)
    first = opened(scheduler)
    kind.steps.clear()
    first.feed(sound(15))
    second = scheduler.open()
    assert second.wait_open(LONG)
    assert len(kind.steps) >= 5


def test_a_failed_join_is_told_to_its_client_alone(run):
    scheduler, _ = run(rows=2)
    first = opened(scheduler)
    refused, broken = scheduler.open("refused"), scheduler.open("broken")
    with pytest.raises(InputError, match="this voice does not exist"):
        refused.wait_open(LONG)
    with pytest.raises(KeyError):
        broken.wait_open(LONG)
    first.feed(sound(1))
    assert first.read(LONG) is not None
    assert scheduler.live == 1


def test_what_a_client_sends_wrong_ends_its_stream_alone(run):
    scheduler, _ = run()
    first, second = opened(scheduler), opened(scheduler)
    first.feed(sound(1, -1.0))
    until(lambda: first._over)
    assert str(first.error) == "this cannot be said."
    second.feed(sound(1))
    assert second.read(LONG) is not None
    with pytest.raises(InputError, match=r"shape \[n\]"):
        second.feed(np.zeros((2, 2)))
    second.feed(np.full(FRAME, np.nan))
    assert second.read(LONG).first == 0


@pytest.mark.parametrize("sent", [b"bytes", 5, None, ["a"]])
def test_what_is_no_text_is_not_said(run, sent):
    scheduler, _ = run()
    stream = opened(scheduler)
    with pytest.raises(InputError, match="what is said should be a text, found"):
        stream.say(sent)


def test_what_a_client_breaks_is_its_own(run):
    """Whatever is raised over what one client has sent, or by what it wants to be called with: the others go on."""
    scheduler, _ = run(rows=3)
    first, other = opened(scheduler), opened(scheduler)
    other.feed(sound(1, -0.75))
    until(lambda: other.ended)
    assert isinstance(other.error, KeyError)
    for problem in (ValueError("no such element"), SystemExit(1), RuntimeError("Event loop is closed")):

        def notify(problem=problem):
            raise problem

        stream = scheduler.open(notify=notify)
        until(lambda stream=stream: stream.ended)
        assert stream.error is problem
    first.feed(sound(1))
    assert first.read(LONG) is not None
    assert scheduler.running
    with pytest.raises(InputError, match="notify should be a function, found int"):
        scheduler.open(notify=5)
    with pytest.raises(InputError, match="what is called should be a function"):
        scheduler.call("frames")
    with pytest.raises(InputError, match="make should be a function"):
        Scheduler(None)


def test_who_asks_while_it_closes_gets_an_answer():
    """Done, cancelled or refused, but never waited for in vain."""
    for i in range(20):
        scheduler = Scheduler(StandIn)
        threading.Timer(0.0005 * i, scheduler.close).start()
        asks = iter(lambda scheduler=scheduler: scheduler.call(lambda kind: None).result(LONG), "never")
        with pytest.raises((ModelStopped, CancelledError)):
            deque(asks, maxlen=0)


def test_a_broken_model_is_told_to_all(run):
    scheduler, _ = run(rows=2)
    streams = [opened(scheduler), opened(scheduler), scheduler.open()]
    streams[0].feed(sound(1, -0.5))
    until(lambda: all(s.ended for s in streams))
    for stream in streams:
        assert isinstance(stream.error, ModelStopped)
        assert str(stream.error) == "the model has stopped: the model broke"
        assert isinstance(stream.error.__cause__, RuntimeError)
    assert isinstance(scheduler.error, RuntimeError)
    with pytest.raises(ModelStopped):
        scheduler.open()
    with pytest.raises(ModelStopped):
        scheduler.call(lambda kind: None)


def test_closing_ends_every_stream(run):
    scheduler, _ = run(rows=1)
    streams = [opened(scheduler), scheduler.open()]
    scheduler.close()
    assert all(s.ended and isinstance(s.error, ModelStopped) for s in streams)
    assert not scheduler.running
    streams[0].feed(sound(1))
    assert streams[0].read(0.01) is None


def test_making_it_may_fail():
    with pytest.raises(InputError, match="one row or more"):
        Scheduler(lambda: (_ for _ in ()).throw(InputError("one row or more")))


def test_calls_are_made_between_steps(run):
    scheduler, kind = run()
    assert scheduler.call(lambda k: k.thread).result(LONG) is kind.thread
    with pytest.raises(ZeroDivisionError):
        scheduler.call(lambda k: 1 // 0).result(LONG)
    assert scheduler.running


def test_clients_are_notified(run):
    scheduler, _ = run(rows=1)
    told = threading.Event()
    stream = scheduler.open(notify=told.set)
    assert told.wait(LONG)
    assert stream.wait_open(LONG)
    told.clear()
    stream.feed(sound(1))
    assert told.wait(LONG)
    assert stream.read() is not None
    told.clear()
    waiting = threading.Event()
    scheduler.open(notify=waiting.set)
    stream.finish()
    assert told.wait(LONG)
    assert waiting.wait(LONG)
    until(lambda: stream.ended)

    def gone():
        raise RuntimeError("Event loop is closed")

    scheduler.open(notify=gone)
    assert scheduler.open().wait_open(0) is False
    assert scheduler.running


def test_memory_of_a_closed_stream_is_let_go(run):
    scheduler, _ = run(rows=1)
    for _ in range(200):
        stream = opened(scheduler)
        stream.feed(sound(1))
        stream.close()
    until(lambda: scheduler.live == 0)
    assert scheduler.figures().streams == 200
    assert scheduler.waiting == 0


# With models --------------------------------------------------------------------------------------------------------


def serve(make, asked: list, send) -> list[list]:
    """What clients on threads of their own get, more of them than there are rows."""
    got: list[list] = [[] for _ in asked]

    def client(number: int) -> None:
        stream = scheduler.open(asked[number])
        stream.wait_open(LONG)
        send(stream, number)
        stream.finish()
        got[number] += read_all(stream, timeout=60)
        if stream.error is not None:
            raise stream.error

    with Scheduler(make) as scheduler:
        threads = [threading.Thread(target=client, args=(n,)) for n in range(len(asked))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert scheduler.error is None
        assert scheduler.figures().dropped_in == 0
    return got


def test_clients_of_a_dialogue(tiny_checkpoint):
    sounds = [noise(8 + n, n) for n in range(4)]
    got = serve(
        lambda: Conversations(checkpoints.load(tiny_checkpoint), rows=2),
        [Talk(seed=n) for n in range(4)],
        lambda stream, n: [stream.feed(part, timeout=LONG) for part in in_pieces(sounds[n], n)],
    )
    model = checkpoints.load(tiny_checkpoint)
    for n, frames in enumerate(got):
        session = Session(model, seed=n)
        alone = [session.step(frame) for frame in sounds[n].reshape(-1, FRAME)]
        assert [(f.text, f.codes.tolist()) for f in frames] == [(f.text, f.codes.tolist()) for f in alone]


@pytest.mark.parametrize("kind", ["stt", "tts", "talk"])
def test_what_one_thread_has_used_another_can(kind, tiny_checkpoint):
    """Nothing of a model is left to be computed by the thread that used it first."""
    place = tiny_checkpoint if kind == "talk" else checkpoint(f"tiny-{kind}")
    model = checkpoints.load(place)

    def make():
        if kind == "stt":
            return Transcriptions(model, rows=1)
        if kind == "tts":
            return Utterances(TTSModel.from_checkpoint(model, temp=0.0, n_q=16), rows=1)
        return Conversations(model, rows=1)

    make()
    with Scheduler(make) as scheduler:
        assert scheduler.running


def test_clients_of_speech_to_text():
    """Marks come back when all before them is written; a flush makes that so without waiting for sound."""
    sounds = [noise(10 + 3 * n, n) for n in range(3)]

    def send(stream, n):
        stream.feed(sounds[n], timeout=LONG)
        stream.mark(n)
        stream.flush()

    got = serve(lambda: Transcriptions(loaded("tiny-stt"), rows=2), [Hear()] * 3, send)
    for n, items in enumerate(got):
        assert [i.index for i in items if isinstance(i, HeardFrame) and i.index is not None] == list(range(10 + 3 * n))
        assert [i for i in items if isinstance(i, Marker)] == [Marker(n)]


def test_clients_of_text_to_speech():
    """Words come in any pieces and at any pace; every frame is 80 ms, and every word is told."""
    texts = ["Hello you there.", "One two.", "Yes and no."]

    def send(stream, n):
        for i in range(0, len(texts[n]), 3):
            stream.say(texts[n][i : i + 3])
            time.sleep(0.002)

    def make():
        return Utterances(TTSModel.from_checkpoint(loaded("tiny-tts"), temp=0.0, n_q=16), rows=2)

    # No voice at all is one, too.
    got = serve(make, [Speak(seed=n) for n in range(3)], send)
    for text, items in zip(texts, got, strict=True):
        assert all(i.pcm.shape == (FRAME,) for i in items if i.codes is not None)
        assert any(i.codes is not None for i in items)
        assert [w.text for i in items for w in i.words] == text.split()
