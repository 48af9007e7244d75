"""A session on its own thread, and conversations kept in files."""

from __future__ import annotations

import queue
import threading
from collections import deque
from concurrent.futures import CancelledError

import mlx.core as mx
import numpy as np
import pytest

from moshi_mlx.errors import CheckpointError, InputError, MoshiError
from moshi_mlx.session import Session
from moshi_mlx.session.conversation_file import load_conversation, save_conversation

FRAME = 1920


def sound(t: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(t).standard_normal(FRAME).astype(np.float32)


def same(a, b) -> bool:
    return all(
        (x.pcm == y.pcm).all() and (x.codes == y.codes).all() and (x.text, x.text_token) == (y.text, y.text_token)
        for x, y in zip(a, b, strict=True)
    )


class Replies:
    """Frames handed over by the session's thread."""

    def __init__(self):
        self.frames: queue.Queue = queue.Queue()
        self.threads: set[str] = set()

    def __call__(self, frame):
        self.threads.add(threading.current_thread().name)
        self.frames.put(frame)

    def take(self, n: int) -> list:
        return [self.frames.get(timeout=300) for _ in range(n)]


@pytest.fixture(scope="module")
def session(tiny_checkpoint):
    return Session.load(tiny_checkpoint, seed=5, compile=False)


def test_spawned_session_says_what_a_stepped_one_says(tiny_checkpoint, session):
    session.reset()
    expected = [session.step(sound(t)) for t in range(12)]
    replies = Replies()
    with Session.spawn(tiny_checkpoint, on_frame=replies, seed=5, compile=False) as thread:
        got = []
        for t in range(12):
            # Any number of samples at a time.
            for part in np.split(sound(t), [7, 500, 1900]):
                thread.feed(part)
            got += replies.take(1)
        assert thread.dropped == 0
    assert same(got, expected)
    assert replies.threads == {"session"}
    assert not thread.running


def test_calls_run_between_frames(tiny_checkpoint, session):
    """Save, go on, come back: from another thread, bit-identically."""
    replies = Replies()
    with Session.spawn(tiny_checkpoint, on_frame=replies, seed=5, compile=False) as thread:
        for t in range(5):
            thread.feed(sound(t))
            replies.take(1)
        saved = thread.call(lambda s: s.state).result(300)
        runs = []
        for _ in range(2):
            for t in range(5, 9):
                thread.feed(sound(t))
                runs += replies.take(1)
            thread.call(lambda s, state=saved: setattr(s, "state", state)).result(300)
        assert same(runs[:4], runs[4:])
        # The other way round: this thread's session continues what the spawned one began.
        session.state = saved
        assert same([session.step(sound(t)) for t in range(5, 9)], runs[:4])
        with pytest.raises(ZeroDivisionError):
            thread.call(lambda s: 1 // 0).result(300)
    with pytest.raises(InputError, match="has ended"):
        thread.call(lambda s: s.state)


def test_a_call_from_the_callback_is_answered_there(tiny_checkpoint):
    """Waiting for it would else be for ever: nobody but this thread could answer."""
    said: queue.Queue = queue.Queue()

    def ask(frame) -> None:
        said.put(thread.call(lambda s: thread.call(lambda s: s.frames).result(60)).result(60))

    with Session.spawn(tiny_checkpoint, on_frame=ask, compile=False) as thread:
        for t in range(2):
            thread.feed(sound(t))
            assert said.get(timeout=60) == t + 1


def test_who_asks_while_it_closes_gets_an_answer(tiny_checkpoint):
    """Done, cancelled or refused, but never waited for in vain."""
    for i in range(6):
        thread = Session.spawn(tiny_checkpoint, on_frame=print, compile=False)
        threading.Timer(0.002 * i, thread.close).start()
        asks = iter(lambda thread=thread: thread.call(lambda s: None).result(60), "never")
        with pytest.raises((InputError, CancelledError)):
            deque(asks, maxlen=0)


def test_the_backlog_is_bounded_and_counted(tiny_checkpoint):
    """A second of sound at once to a thread that is held up: the oldest goes."""
    replies, begun, go = Replies(), threading.Event(), threading.Event()
    with Session.spawn(tiny_checkpoint, on_frame=replies, seed=5, compile=False) as thread:
        held = thread.call(lambda s: begun.set() or go.wait(300))
        assert begun.wait(300)
        for t in range(13):
            thread.feed(sound(t))
        go.set()
        assert held.result(300)
        assert len(replies.take(4)) == 4
        assert thread.dropped == 9
        assert thread.lag == 0


def test_what_goes_wrong_is_told(tiny_checkpoint, tmp_path):
    with pytest.raises(MoshiError, match="does not exist"):
        Session.spawn(tmp_path / "no", on_frame=print)
    errors: queue.Queue = queue.Queue()

    def broken(frame):
        raise RuntimeError("the caller's own")

    thread = Session.spawn(tiny_checkpoint, on_frame=broken, on_error=errors.put, compile=False)
    with pytest.raises(InputError, match=r"shape \[n\]"):
        thread.feed(np.zeros((2, 2), np.float32))
    thread.feed(sound(0))
    assert str(errors.get(timeout=300)) == "the caller's own"
    thread.close()
    assert isinstance(thread.error, RuntimeError)
    with pytest.raises(InputError, match="one conversation, found 2"):
        Session.spawn(tiny_checkpoint, on_frame=print, batch=2, compile=False)


def test_close_from_the_callback(tiny_checkpoint):
    done = threading.Event()

    def last(frame):
        thread.close()
        done.set()

    thread = Session.spawn(tiny_checkpoint, on_frame=last, compile=False)
    thread.feed(sound(0))
    assert done.wait(300)
    thread.close()
    assert not thread.running
    assert thread.error is None


# Conversations in files --------------------------------------------------------------------------------------------


def test_saved_conversation_continues_identically(session, tiny_checkpoint, tmp_path):
    session.reset()
    for t in range(30):
        session.step(sound(t))
    save_conversation(session, tmp_path / "talk.safetensors")
    expected = [session.step(sound(t)) for t in range(30, 50)]
    other = Session.load(tiny_checkpoint, seed=77, compile=False)
    load_conversation(other, tmp_path / "talk.safetensors")
    got = [other.step(sound(t)) for t in range(30, 50)]
    assert same(got, expected)
    assert [f.index for f in got] == list(range(30, 50))
    assert [p.name for p in tmp_path.iterdir()] == ["talk.safetensors"]


def test_a_fork_in_the_middle_of_a_character(session):
    """Half a letter is part of the state: the text continues identically too."""
    session.reset()
    session._text[0].pending = "\u00e9".encode()[:1]
    saved = session.state
    for _ in range(2):
        session.state = saved
        assert session._text[0].pending == b"\xc3"
    session._text[0].pending = b""
    assert session.state["text"].tolist() == [[0, 0, 0, 0]]


def test_files_that_are_no_conversation_of_this_model(session, tiny_checkpoint, tmp_path):
    session.reset()
    save_conversation(session, tmp_path / "talk.safetensors")
    with pytest.raises(CheckpointError, match="not a saved conversation"):
        load_conversation(session, next(tiny_checkpoint.glob("model*.safetensors")))
    with pytest.raises(CheckpointError, match="does not exist"):
        load_conversation(session, tmp_path / "no.safetensors")
    other = Session.load(tiny_checkpoint, seed=5, compile=False, batch=2)
    with pytest.raises(CheckpointError, match="another model"):
        load_conversation(other, tmp_path / "talk.safetensors")
    arrays = mx.load(str(tmp_path / "talk.safetensors"))
    del arrays["lm.offset"]
    mx.save_safetensors(str(tmp_path / "less.safetensors"), arrays, {"format": "moshi_mlx conversation 1"})
    with pytest.raises(CheckpointError, match=r"lm\.offset is not on both sides"):
        load_conversation(session, tmp_path / "less.safetensors")
    with pytest.raises(InputError, match="make it first"):
        save_conversation(session, tmp_path / "no" / "talk.safetensors")
    with pytest.raises(InputError, match=r"should end in \.safetensors"):
        save_conversation(session, tmp_path / "talk.bin")
