"""The loop and what is around it, with devices that tests control."""

from __future__ import annotations

import io
import json
import os
import pty
import threading
import time
from collections import deque
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from moshi_mlx.audio.capture import Capture
from moshi_mlx.audio.files import AudioReader
from moshi_mlx.audio.loudness import decibels
from moshi_mlx.errors import AudioError, InputError, OutputError
from moshi_mlx.live import loop as loop_module
from moshi_mlx.live.assemble import make_sides
from moshi_mlx.live.controls import Controls
from moshi_mlx.live.figures import Histogram, Status
from moshi_mlx.live.file_sides import FileSink, FileSource, NoSink, PacedFileSource
from moshi_mlx.live.keys import KeyReader, press
from moshi_mlx.live.lines import JsonView, PlainView, summary
from moshi_mlx.live.loop import LiveLoop, silence_advice
from moshi_mlx.live.recording import Recorder
from moshi_mlx.live.reporter import KEPT, Event, Reporter
from moshi_mlx.live.terminal import TerminalView, bar
from moshi_mlx.live.trace import Trace
from moshi_mlx.live.warmup import StepTimes, WarmUp, warm_up
from moshi_mlx.session import Frame, Session

FRAME = 1920


class Talker:
    """Repeats what it hears, says its index as a word every fifth frame."""

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.heard, self.seeds = seconds, [], []
        self.index = 0

    def reset(self, seed=None):
        self.seeds.append(seed)
        self.index = 0

    def step(self, pcm):
        time.sleep(self.seconds)
        self.heard.append(pcm)
        text = f" w{self.index}" if self.index % 5 == 0 else ""
        self.index += 1
        return Frame(pcm, text, 0, np.zeros(8, np.int32), self.index - 1, (self.index - 1) * 0.08)


class Source(FileSource):
    """`script[i]` happens before frame i: a callable, or a problem to report until the side is opened again."""

    paced = True

    def __init__(self, frames: int, script: dict | None = None, zeros: bool = False):
        self.left, self.script, self.zeros = frames, script or {}, zeros
        self.ended, self.completed, self.trouble = False, 0.0, None
        self.calls: list[str] = []
        self.given = 0
        self.refusals = 0

    def open(self):
        self.calls.append("open")
        if self.refusals:
            self.refusals -= 1
            raise AudioError("no such device.")
        self.trouble = None

    def read(self, timeout):
        if self.trouble:
            return None
        action = self.script.pop(self.given, None)
        if isinstance(action, str):
            self.trouble = action
            return None
        if action is not None:
            action()
            return None
        if self.given == self.left:
            self.ended = True
            return None
        self.given += 1
        self.completed = time.perf_counter()
        return np.full(FRAME, 0 if self.zeros else self.given / 1000, np.float32)

    @property
    def silent(self):
        return self.zeros and self.given > 37

    def problem(self):
        return self.trouble

    def pause(self, paused):
        self.calls.append("pause" if paused else "resume")

    def suspend(self):
        self.calls.append("suspend")

    def close(self):
        self.calls.append("close")


class Sink(NoSink):
    def __init__(self):
        self.frames, self.calls = [], []

    def write(self, pcm, captured=None):
        self.frames.append(pcm)

    def stop(self):
        self.calls.append("stop")

    def finish(self):
        self.calls.append("finish")

    def close(self):
        self.calls.append("close")


class Told(list):
    def __call__(self, kind, **fields):
        self.append((kind, fields))

    def of(self, kind: str) -> list:
        return [fields for k, fields in self if k == kind]


def make(source: Source, **options) -> tuple[LiveLoop, Talker, Sink, Told]:
    talker, sink, told = Talker(), Sink(), Told()
    return LiveLoop(talker, source, sink, tell=told, **options), talker, sink, told


def test_every_frame_once_and_words_with_times():
    source = Source(30)
    loop, talker, sink, told = make(source)
    status = loop.run()
    assert status.frames == len(talker.heard) == len(sink.frames) == 30
    assert [round(1000 * float(f[0])) for f in sink.frames] == list(range(1, 31))
    assert told.of("word") == [
        {"text": f"w{i}", "start": pytest.approx(i * 0.08), "end": pytest.approx(i * 0.08 + 0.08)}
        for i in range(0, 30, 5)
    ]
    assert "".join(t["text"] for t in told.of("text")) == " w0 w5 w10 w15 w20 w25"
    assert len(told.of("status")) == 2
    assert sink.calls == ["finish", "close"]
    assert source.calls == ["open", "close"]
    assert status.state == "ended"


def test_steps_end_the_talk():
    loop, _talker, _, _ = make(Source(30), steps=7)
    assert loop.run().frames == 7


def test_mute_gives_the_model_silence():
    controls = Controls()
    source = Source(6, {2: controls.toggle_mute, 4: controls.toggle_mute})
    loop, talker, _, _ = make(source, controls=controls)
    loop.run()
    assert [bool(h.any()) for h in talker.heard] == [True, True, False, False, True, True]


def test_pause_stops_both_sides_and_resumes():
    controls = Controls()

    def pause():
        controls.toggle_pause()
        threading.Timer(0.1, controls.toggle_pause).start()

    source = Source(6, {3: pause})
    loop, _talker, sink, _ = make(source, controls=controls)
    begun = time.monotonic()
    assert loop.run().frames == 6
    assert time.monotonic() - begun >= 0.1
    assert sink.calls == ["stop", "finish", "close"]
    assert source.calls == ["open", "pause", "resume", "close"]


def test_restart_begins_a_new_conversation_with_another_seed(tmp_path):
    controls, recorder = Controls(), Recorder(tmp_path / "r")
    source = Source(10, {4: controls.restart})
    loop, talker, sink, told = make(source, controls=controls, recorder=recorder, seed=3)
    loop.run()
    recorder.close()
    assert talker.seeds == [4]
    assert "stop" in sink.calls
    # Times go on counting from the beginning of the talk.
    assert [w["text"] for w in told.of("word")] == ["w0", "w0", "w5"]
    assert [w["start"] for w in told.of("word")] == pytest.approx([0, 0.32, 0.72])
    events = [json.loads(line) for line in (tmp_path / "r" / "transcript.jsonl").read_text().splitlines()]
    assert [e.get("text", e.get("event")) for e in events] == ["w0", "restart", "w0", "w5", "end"]
    assert soundfile.info(tmp_path / "r" / "user.wav").frames == 10 * FRAME


def test_stop_from_another_thread_ends_a_pause():
    controls = Controls()

    def pause():
        controls.toggle_pause()
        threading.Timer(0.1, controls.stop, (143, "SIGTERM")).start()

    loop, _, sink, _ = make(Source(6, {3: pause}), controls=controls)
    assert loop.run().frames == 3
    assert (controls.exit_code, controls.reason) == (143, "SIGTERM")
    assert sink.calls[-2:] == ["finish", "close"]


def test_a_lost_device_is_waited_for_and_the_conversation_continues(monkeypatch, tmp_path):
    monkeypatch.setattr(loop_module, "RETRY_SECONDS", 0.01)
    source, recorder, restarts = Source(12, {5: "Desk mic was disconnected"}), Recorder(tmp_path / "r"), []

    def restart():
        restarts.append(1)
        # It cannot be opened the first two times.
        source.refusals = 1 if len(restarts) <= 2 else 0

    loop, talker, _, told = make(source, restart_audio=restart, recorder=recorder)
    status = loop.run()
    recorder.close()
    assert status.frames == 12
    assert talker.seeds == [], "the same conversation"
    assert [n["text"] for n in told.of("notice")] == [
        "Desk mic was disconnected; waiting for it",
        "the conversation continues",
    ]
    assert len(restarts) == 3
    assert status.reconnects == 1
    assert source.calls == ["open", "suspend", "open", "suspend", "open", "suspend", "open", "close"]
    transcript = (tmp_path / "r" / "transcript.jsonl").read_text()
    assert '"event": "Desk mic was disconnected"' in transcript


def test_waiting_for_a_device_can_be_ended(monkeypatch):
    # Nothing else would end it.
    monkeypatch.setattr(loop_module, "RETRY_SECONDS", threading.TIMEOUT_MAX)
    controls = Controls()
    source = Source(12, {5: "Desk mic was disconnected"})
    loop, _, _, _ = make(source, controls=controls)
    threading.Timer(0.2, controls.stop).start()
    assert loop.run().frames == 5


def test_a_sound_system_that_hangs_ends_the_talk_in_one_sentence(monkeypatch):
    monkeypatch.setattr(loop_module, "RETRY_SECONDS", 0.01)

    def restart():
        raise AudioError("the sound system no longer responds. Reconnect the device and start again.")

    source = Source(12, {5: "Desk mic was disconnected"})
    loop, _, sink, _ = make(source, restart_audio=restart)
    with pytest.raises(AudioError, match="no longer responds"):
        loop.run()
    assert source.calls[-1] == sink.calls[-1] == "close"


def test_digital_silence_is_explained_once():
    loop, _, _, told = make(Source(60, zeros=True))
    loop.run()
    assert len(told.of("notice")) == 1
    assert "digital silence" in told.of("notice")[0]["text"]
    assert "System Settings > Privacy & Security > Microphone" in silence_advice("darwin")
    assert "--list-devices" in silence_advice("linux")


def test_closed_in_order_when_the_model_fails():
    source = Source(9)
    loop, talker, sink, _ = make(source)
    talker.step = lambda pcm: 1 / 0
    with pytest.raises(ZeroDivisionError):
        loop.run()
    assert source.calls[-1] == sink.calls[-1] == "close"


def test_a_device_that_does_not_let_go_spoils_nothing():
    source = Source(9)

    def close():
        raise AudioError("the sound system no longer responds.")

    source.close = close
    loop, _, sink, told = make(source)
    assert loop.run().frames == 9
    assert sink.calls == ["finish", "close"]
    assert told.of("notice") == [{"text": "the sound system no longer responds."}]


# Files as sides ------------------------------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path) -> Path:
    """Two seconds whose samples tell their frame."""
    pcm = np.repeat(np.arange(1, 26) / 100, FRAME).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", pcm, 24000, subtype="FLOAT")
    return tmp_path / "in.wav"


def frames_of(path: Path) -> list[int]:
    pcm = soundfile.read(path, dtype="float32")[0].reshape(-1, FRAME)
    return [round(100 * float(f[FRAME // 2])) for f in pcm]


def test_paced_and_fast_runs_give_the_same(recording, tmp_path):
    for name, make_source in (("fast", FileSource), ("paced", partial(PacedFileSource, max_lag=4.0))):
        begun = time.monotonic()
        sink = FileSink(tmp_path / f"{name}.wav")
        status = LiveLoop(Talker(), make_source(AudioReader(recording), tail=0.16), sink).run()
        assert status.frames == 27
        assert status.dropped == 0
        assert frames_of(tmp_path / f"{name}.wav") == [*range(1, 26), 0, 0]
        if name == "paced":
            assert time.monotonic() - begun > 2.1


def test_a_frame_is_stepped_as_soon_as_it_is_complete():
    """Not a sample of the next one comes before the model has had it."""
    source, talker, stepped = CaptureSource(0), Talker(), threading.Semaphore(0)
    step = talker.step
    talker.step = lambda pcm: (stepped.release(), step(pcm))[1]

    def speak():
        for i in range(5):
            source.capture.feed(np.full(FRAME, i / 10, np.float32))
            assert stepped.acquire(timeout=300)

    speaker = threading.Thread(target=speak)
    speaker.start()
    LiveLoop(talker, source, NoSink(), steps=5).run()
    speaker.join()
    assert [round(10 * float(h[-1])) for h in talker.heard] == [0, 1, 2, 3, 4]


class CaptureSource(PacedFileSource):
    """A microphone whose clock is the test's: `feed` brings what is spoken in 10 ms, until all has been spoken."""

    def __init__(self, frames: int, max_lag: float = 0.24):
        self.capture, self.closed = Capture(24000, FRAME, max_lag=max_lag), False
        self._left = deque(
            np.split(np.repeat(np.arange(1, frames + 1) / 100, FRAME).astype(np.float32), 8 * frames or 1)
        )
        self._done, self._error = threading.Event(), None

    def open(self):
        pass

    def close(self):
        pass

    def feed(self, blocks: int) -> None:
        for _ in range(min(blocks, len(self._left))):
            self.capture.feed(self._left.popleft())
        if not self._left:
            self._done.set()


def test_a_slow_model_loses_the_oldest_and_every_loss_is_counted():
    """100 ms per frame of 80, on the clock of the sound itself: a fifth is lost, the backlog keeps its bound."""
    source, talker, lags = CaptureSource(50, max_lag=0.16), Talker(), []
    step, read = talker.step, source.read

    def slow_step(pcm):
        lags.append(source.lag)
        source.feed(10)
        return step(pcm)

    def waiting_read(timeout):
        while (frame := read(0)) is None and not source.ended:
            source.feed(1)
        return frame

    talker.step, source.read = slow_step, waiting_read
    status = LiveLoop(talker, source, NoSink()).run()
    heard = [round(100 * float(h[FRAME // 2])) for h in talker.heard]
    assert heard == sorted(set(heard)), "in order, none twice"
    assert status.dropped == 50 - len(heard) == 8
    assert max(lags) == pytest.approx(0.16)
    assert heard[-1] == 50


def test_a_slow_model_and_a_file_at_the_pace_of_speech(tmp_path):
    """The same with threads and clocks, as far as it holds on a machine that has other things to do."""
    pcm = np.repeat(np.arange(1, 51) / 100, FRAME).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", pcm, 24000, subtype="FLOAT")
    source = PacedFileSource(AudioReader(tmp_path / "in.wav"), max_lag=0.16)
    status = LiveLoop(Talker(0.1), source, FileSink(tmp_path / "out.wav")).run()
    heard = frames_of(tmp_path / "out.wav")
    assert heard == sorted(set(heard))
    assert 50 - len(heard) == status.dropped >= 5
    assert heard[-1] == 50


def test_a_paused_file_stands_still(recording, tmp_path):
    controls, talker = Controls(), Talker()
    source = PacedFileSource(AudioReader(recording), max_lag=4.0)
    step, pause = talker.step, source.pause

    def step_and_pause(pcm):
        if talker.index == 3:
            controls.toggle_pause()
        return step(pcm)

    def pause_for_half_a_second(paused):
        pause(paused)
        if paused:
            threading.Timer(0.5, controls.toggle_pause).start()

    talker.step, source.pause = step_and_pause, pause_for_half_a_second
    begun = time.monotonic()
    status = LiveLoop(talker, source, FileSink(tmp_path / "out.wav"), controls=controls).run()
    assert time.monotonic() - begun > 2.4
    assert status.dropped == 0
    assert frames_of(tmp_path / "out.wav") == list(range(1, 26))


def test_output_is_kept_when_the_talk_is_ended(recording, tmp_path):
    controls, talker = Controls(), Talker()
    step = talker.step
    talker.step = lambda pcm: (controls.stop(130) if talker.index == 5 else None, step(pcm))[1]
    LiveLoop(talker, PacedFileSource(AudioReader(recording)), FileSink(tmp_path / "o.wav"), controls=controls).run()
    assert len(frames_of(tmp_path / "o.wav")) == 6
    assert [p.name for p in tmp_path.iterdir() if p.suffix == ".part"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fast": True}, "--fast needs --input FILE"),
        ({"tail": 1.0}, "--tail needs --input FILE"),
        ({"input_file": "a.wav", "input_device": "0"}, "--input-device and a.wav were both given"),
        ({"input_file": "a.wav", "input_channel": 1}, "--input-channel and a.wav were both given"),
        ({"output_file": "a.wav", "output_device": "0"}, "--output-device and a.wav were both given"),
        ({"input_channel": 0}, "counts from 1"),
        ({"input_file": "no.wav", "output_file": "o.wav"}, "no.wav does not exist"),
    ],
)
def test_sides_that_cannot_be(options, message):
    with pytest.raises((InputError, AudioError), match=message):
        make_sides(**options, portaudio=lambda: pytest.fail("no device was needed"))


def test_files_alone_need_no_portaudio(recording, tmp_path):
    def missing():
        raise AudioError("PortAudio is not installed.")

    sides = make_sides(str(recording), str(tmp_path / "o.wav"), portaudio=missing)
    assert sides.real_time
    assert not sides.loudspeaker_and_microphone
    sides.close()
    make_sides(str(recording), fast=True, portaudio=missing).close()
    with pytest.raises(AudioError, match="not installed"):
        make_sides(str(recording), portaudio=missing)


# Figures and warm-up ---------------------------------------------------------------------------------------------------


def test_histogram_against_numpy():
    x = np.random.default_rng(0).gamma(4, 0.01, 5000)
    h = Histogram()
    for value in x:
        h.add(float(value))
    for p in (1, 50, 95, 99):
        assert h.percentile(p) == pytest.approx(np.percentile(x, p, method="inverted_cdf"), abs=h.WIDTH)
    assert h.worst == x.max()
    assert h.mean == pytest.approx(x.mean())
    h.add(2.5)
    assert h.percentile(100) == 2.5
    assert Histogram().percentile(50) == 0


def test_levels():
    assert decibels(np.ones(100)) == pytest.approx(0, abs=1e-6)
    assert decibels(np.full(100, 0.1)) == pytest.approx(-20, abs=1e-4)
    assert decibels(np.zeros(100)) == -120
    assert (bar(0).count("\u2588"), bar(-30).count("\u2588"), bar(-90).count("\u2588")) == (24, 12, 0)


def test_warm_up_measures_and_leaves_the_conversation_as_it_was(tiny_checkpoint):
    session, fresh = (Session.load(tiny_checkpoint, seed=4) for _ in range(2))
    warmed = warm_up(session)
    assert 0 < warmed.start.p50 <= warmed.start.p95
    for t in range(5):
        pcm = np.full(FRAME, 0.01 * t, np.float32)
        a, b = session.step(pcm), fresh.step(pcm)
        assert (a.pcm == b.pcm).all()
        assert (a.codes == b.codes).all()


def test_warm_up_measures_the_first_and_the_last_size_of_the_rings(tiny_checkpoint, monkeypatch):
    from moshi_mlx.engine import step as step_module
    from moshi_mlx.modules import transformer

    monkeypatch.setattr(step_module, "FIRST_CAPACITY", 64)
    session = Session.load(tiny_checkpoint)
    sizes, step = set(), session.step

    def spy(pcm):
        sizes.add(transformer.capacity_of(session.state["lm"]["trunk"]))
        return step(pcm)

    session.step = spy
    warmed = warm_up(session)
    assert sizes == {64, 250}
    assert warmed.full is not warmed.start


@pytest.mark.parametrize(
    ("start", "full", "words"),
    [
        (40, 50, ["keeps up"]),
        (40, 75, ["little to spare", "if it falls behind: close other programs"]),
        (40, 95, ["will not keep up once the window is full", "-q 4"]),
        (90, 95, ["will not keep up, sound will be dropped", "--context 60"]),
    ],
)
def test_the_verdict_is_honest(start, full, words):
    lines = WarmUp(StepTimes(start - 2, start, 5_000_000_000), StepTimes(full - 2, full, 6_500_000_000)).verdict()
    text = " ".join(lines)
    assert f"{start - 2:.1f} ms per frame (p95 {start:.1f}) of 80, memory 5.00 GB" in text
    assert f"{full - 2:.1f} ms (p95 {full:.1f}), 6.50 GB" in text
    for w in words:
        assert w in text


# Views -----------------------------------------------------------------------------------------------------------------


class View(PlainView):
    """Remembers, and stands still when told to."""

    def __init__(self):
        self.shown, self.go = [], threading.Event()
        self.go.set()

    def show(self, event):
        self.go.wait()
        self.shown.append(event)

    def end(self, status):
        self.ended = True


def test_a_view_that_stands_still_delays_nobody():
    view = View()
    view.go.clear()
    reporter = Reporter(view, Status())
    reporter.start()
    for i in range(KEPT + 500):
        reporter.emit("text", text=str(i))
    # Still here: had one waited for the view, nothing would end the wait.
    view.go.set()
    reporter.close()
    assert len(view.shown) + reporter.lost == KEPT + 500
    assert view.shown[-1].fields["text"] == str(KEPT + 499)
    assert view.ended


def test_a_reader_that_went_away_ends_the_talk():
    class Broken(View):
        def show(self, event):
            raise BrokenPipeError

    controls = Controls()
    reporter = Reporter(Broken(), Status(), lambda: controls.stop(1, "nobody reads"))
    reporter.start()
    reporter.emit("text", text="a")
    reporter.close()
    assert controls.exit_code == 1


def events() -> list[Event]:
    return [
        Event("text", {"text": " Hello", "time": 0.0}),
        Event("text", {"text": " there", "time": 0.1}),
        Event("notice", {"text": "something happened"}),
        Event("text", {"text": " again", "time": 0.4}),
    ]


def test_plain_lines():
    out, err = io.StringIO(), io.StringIO()
    view = PlainView(out, err)
    for event in events():
        view.show(event)
    view.end(Status())
    assert out.getvalue() == "Hello there\nagain\n"
    assert err.getvalue() == "something happened\n"


def test_json_lines():
    out = io.StringIO()
    view = JsonView(out)
    for event in events():
        view.show(event)
    view.end(Status(frames=3, dropped=1))
    parsed = [json.loads(line) for line in out.getvalue().splitlines()]
    assert parsed[0] == {"event": "text", "text": " Hello", "time": 0.0}
    assert parsed[-1]["event"] == "end"
    assert (parsed[-1]["frames"], parsed[-1]["dropped_frames"]) == (3, 1)
    assert parsed[-1]["latency_ms"] is None


def test_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=140, height=24, color_system=None)
    view, status = TerminalView(console), Status(state="paused", frames=10, seconds=3725.0, heard=-20, spoken=-40)
    status.muted, status.dropped, status.underruns = True, 2, 1
    status.steps.add(0.05)
    status.latency.add(0.123)
    view.start(status)
    for event in [*events(), Event("text", {"text": " [bold]not markup[/bold]"})]:
        view.show(event)
    view.draw(status)
    picture = console.file.getvalue()
    for part in (
        "Hello there again [bold]not markup[/bold]", "something happened", "you (muted)", "Moshi", "-20 dB", "1:02:05",
        "step 50 ms (p95 50) of 80", "lag 0 ms", "buffer 0 ms", "latency 123 / 123 / 123 ms", "dropped 2 | underruns 1",
        "[paused]", "m mute  p pause  r restart  q quit",
    ):  # fmt: skip
        assert part in picture, part
    view.end(status)
    assert console.file.getvalue().endswith("Hello there again [bold]not markup[/bold]\n")


def test_terminal_of_any_size_keeps_the_last_words():
    for width, height in ((20, 5), (40, 10), (200, 60)):
        console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
        view = TerminalView(console)
        view.start(Status())
        for i in range(2000):
            view.show(Event("text", {"text": f" word{i}"}))
        view.draw(Status())
        assert "word1999" in console.file.getvalue()
        view.end(Status())


def test_summary():
    status = Status(frames=100, seconds=8.0, dropped=3, underruns=2, device_errors=1, reconnects=1)
    status.steps.add(0.02)
    text = summary(status)
    for part in ("8.0 s, 100 frames", "3 frames dropped, 2 underruns", "1 blocks lost", "1 reconnections"):
        assert part in text


# Keys ------------------------------------------------------------------------------------------------------------------


def test_keys():
    controls = Controls()
    press(controls, "m")
    assert controls.muted
    press(controls, "M")
    assert not controls.muted
    press(controls, "p")
    assert controls.paused
    press(controls, "r")
    assert controls.take_restart()
    assert not controls.take_restart()
    assert not controls.paused
    press(controls, "x")
    assert not controls.stopping
    press(controls, "q")
    assert controls.exit_code == 0


def test_keys_from_a_terminal_which_is_put_back():
    import termios

    master, slave = pty.openpty()
    before, controls = termios.tcgetattr(slave), Controls()
    with KeyReader(controls, slave):
        assert not termios.tcgetattr(slave)[3] & termios.ICANON
        os.write(master, b"mq")
        deadline = time.monotonic() + 300
        while not controls.stopping and time.monotonic() < deadline:
            time.sleep(0.01)
    assert controls.muted
    assert controls.exit_code == 0
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_keys_without_a_terminal():
    with open(os.devnull) as f, KeyReader(Controls(), f.fileno()):
        pass


# Trace -----------------------------------------------------------------------------------------------------------------


def test_trace(tmp_path):
    trace = Trace(tmp_path / "trace.json")
    loop, *_ = make(Source(5), trace=trace)
    loop.run()
    trace.write()
    parsed = json.loads((tmp_path / "trace.json").read_text())
    spans = [e for e in parsed["traceEvents"] if e["ph"] == "X"]
    assert {e["name"] for e in spans} == {"listen", "echo", "step", "speak"}
    assert sum(e["name"] == "step" for e in spans) == 5
    assert all(e["dur"] >= 0 and e["ts"] >= 0 for e in spans)
    assert any(e["ph"] == "C" and e["name"] == "lag_ms" for e in parsed["traceEvents"])
    with pytest.raises(OutputError, match="make it first"):
        Trace(tmp_path / "no" / "trace.json")
