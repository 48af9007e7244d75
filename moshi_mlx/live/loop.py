"""The live loop: one frame of the user's sound in, one frame of Moshi's out, until someone ends it.

It runs on the thread that made the session. Devices have threads of their own, which only move samples through rings; what
is shown and written travels through bounded queues. So the only thing this thread ever waits for is the next frame.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from ..audio.echo import Canceller, FarEnd
from ..audio.loudness import decibels
from ..errors import AudioError
from ..session.session import Frame
from ..text import Word, WordTimer
from .controls import Controls
from .figures import Status
from .recording import Recorder
from .sides import Sink, Source, Talker
from .trace import NoTrace, Trace

# How long one wait for sound lasts before the devices are looked at, and how often a lost one is tried.
PATIENCE, RETRY_SECONDS = 0.5, 1.0
# Figures are reported, and the memory is asked, this often.
REPORT_FRAMES = 12

Tell = Callable[..., None]


class LiveLoop:
    """One talk. `status` may be read and `controls` used from any thread while `run` is going on.

    `tell(kind, **fields)` hears what happens: "text", "word", "notice", "status"; it must not block.
    `restart_audio` lets PortAudio look for devices again after one was lost. `rest`: what is still said once the source has
    ended by itself, which translations have.
    """

    def __init__(
        self,
        talker: Talker,
        source: Source,
        sink: Sink,
        *,
        canceller: Canceller | None = None,
        recorder: Recorder | None = None,
        trace: Trace | NoTrace | None = None,
        controls: Controls | None = None,
        tell: Tell | None = None,
        restart_audio: Callable[[], None] | None = None,
        steps: int | None = None,
        seed: int = 0,
        frame_rate: float = 12.5,
        rest: Callable[[], Iterator[Frame]] | None = None,
    ):
        self.talker, self.source, self.sink = talker, source, sink
        self.canceller, self.recorder = canceller, recorder
        self.trace = trace or NoTrace()
        self.controls, self.status = controls or Controls(), Status()
        self.restart_audio, self.steps, self.seed = restart_audio, steps, seed
        self.tell: Tell = _tell_nobody if tell is None else tell
        self._rest = rest
        self._timer, self._frame_rate = WordTimer(frame_rate), frame_rate
        self._far: FarEnd | None = None
        self._said = {"silence": False, "invalid": False}
        self._was_dropped = 0

    # The talk -------------------------------------------------------------------------------------------------------

    def run(self) -> Status:
        """Talk until the input ends, `steps` frames are done, or `controls` says stop; everything is closed afterwards."""
        self.controls.on_change(self.source.wake)
        try:
            self._open()
            self.status.state = "talking"
            while not self._over():
                self._obey()
                if self.controls.paused or self.controls.stopping:
                    continue
                self._turn()
            self._say_the_rest()
            self._finish()
        finally:
            self.controls.on_change(None)
            self.status.state = "ended"
            self._close()
        return self.status

    def _close(self) -> None:
        """The talk is over: a device that does not let go spoils nothing any more."""
        for side in (self.source, self.sink):
            try:
                side.close()
            except AudioError as e:
                self.tell("notice", text=str(e))

    def _open(self) -> None:
        # The loudspeaker first: the microphone's first frame should find it playing.
        for side in (self.sink, self.source):
            side.open()
            while not side.started(PATIENCE) and side.problem() is None and not self.controls.stopping:
                pass
        self._far = None
        if self.canceller is not None and self.sink.playback is not None:
            self._far = FarEnd(self.sink.playback)

    def _over(self) -> bool:
        return self._done() or self.source.ended

    def _done(self) -> bool:
        """Whether no further frame is wanted."""
        return self.controls.stopping or (self.steps is not None and self.status.frames >= self.steps)

    def _turn(self) -> None:
        with self.trace.span("listen"):
            heard = self.source.read(PATIENCE)
        if heard is not None:
            self._frame(heard)
        elif self.source.ended or self.controls.stopping:
            return
        problem = self.source.problem() or self.sink.problem()
        if problem is not None:
            self._wait_for_devices(problem)

    def _frame(self, heard: np.ndarray) -> None:
        """One frame through the canceller, the model, the loudspeaker and the recording."""
        completed, self.status.lag = self.source.completed, self.source.lag
        self._look_at(heard)
        with self.trace.span("echo"):
            heard = self._without_echo(heard)
        if self.controls.muted:
            heard = np.zeros_like(heard)
        begun = time.perf_counter()
        with self.trace.span("step"):
            frame = self.talker.step(heard)
        self.status.steps.add(time.perf_counter() - begun)
        self._answer(heard, frame, completed)

    def _say_the_rest(self) -> None:
        """Frames that follow the end of the source, at the pace at which it came."""
        if self._rest is None or not self.source.ended:
            return
        due, rest = time.perf_counter(), self._rest()
        while not self._done():
            begun = time.perf_counter()
            frame = next(rest, None)
            if frame is None:
                return
            self.status.steps.add(time.perf_counter() - begun)
            self._answer(np.zeros_like(frame.pcm), frame, begun)
            due += 1 / self._frame_rate
            if self.source.paced:
                self.controls.wait(max(0.0, due - time.perf_counter()))

    def _answer(self, heard: np.ndarray, frame: Frame, completed: float) -> None:
        """One frame of the reply: to the loudspeaker, the screen, the recording."""
        with self.trace.span("speak"):
            self.sink.write(frame.pcm, completed)
        words = self._tell(frame.text)
        if self.recorder is not None:
            self.recorder.add(heard, frame.pcm, words)
        self._update(heard, frame.pcm)

    def _without_echo(self, heard: np.ndarray) -> np.ndarray:
        if self.canceller is None:
            return heard
        skipped = (self.source.dropped - self._was_dropped) * len(heard)
        self._was_dropped = self.source.dropped
        if self._far is None:
            return self.canceller.process(heard, np.zeros_like(heard))
        return self.canceller.process(heard, self._far.take(len(heard), self.status.lag, skipped))

    def _tell(self, text: str) -> list[Word]:
        frame = self.status.frames
        words = self._timer.feed(text, frame)
        if text:
            self.tell("text", text=text, time=round(frame / self._frame_rate, 3))
        self._tell_words(words)
        return words

    def _tell_words(self, words: list[Word]) -> None:
        for w in words:
            self.tell("word", text=w.text, start=w.start, end=w.end)

    def _update(self, heard: np.ndarray, said: np.ndarray) -> None:
        s, source, sink = self.status, self.source, self.sink
        s.frames += 1
        s.seconds = s.frames / self._frame_rate
        s.heard, s.spoken = decibels(heard), decibels(said)
        s.dropped, s.invalid = source.dropped, source.invalid
        s.buffered, s.hold, s.underruns = sink.buffered, sink.hold, sink.underruns
        s.device_errors = source.errors + sink.errors
        s.muted = self.controls.muted
        if sink.playback is not None:
            heard_again = sink.playback.latencies
            seconds = np.empty(min(heard_again.level, heard_again.capacity), np.float32)
            heard_again.take(seconds)
            for x in seconds:
                s.latency.add(float(x) + source.delay + sink.delay)
        self.trace.counters(lag_ms=1000 * s.lag, buffer_ms=1000 * s.buffered, dropped=s.dropped, underruns=s.underruns)
        if s.frames % REPORT_FRAMES == 0:
            s.memory = mx.get_active_memory()
            self.tell("status", **s.figures())

    def _finish(self) -> None:
        words = self._timer.flush()
        self._tell_words(words)
        if self.recorder is not None:
            self.recorder.note("end", words)
        if self.controls.stopping:
            self.sink.stop()
        self.sink.finish()

    # What the user asks for -----------------------------------------------------------------------------------------

    def _obey(self) -> None:
        if self.controls.take_restart():
            self._begin_again()
        if self.controls.paused and not self.controls.stopping:
            self._pause()

    def _begin_again(self) -> None:
        self.seed += 1
        words = self._timer.flush()
        self._tell_words(words)
        self.sink.stop()
        self.talker.reset(self.seed)
        self.source.pause(False)
        self._realign()
        if self.recorder is not None:
            self.recorder.note("restart", words)
        self.tell("notice", text="a new conversation begins")

    def _pause(self) -> None:
        self.sink.stop()
        self.source.pause(True)
        self.status.state = "paused"
        self.trace.instant("pause")
        while self.controls.paused and not self.controls.stopping:
            self.controls.wait(PATIENCE)
            problem = self.source.problem() or self.sink.problem()
            if problem is not None:
                self._wait_for_devices(problem)
                self.status.state = "paused"
        self.source.pause(False)
        self._realign()
        self.status.state = "talking"

    def _realign(self) -> None:
        if self._far is not None:
            self._far.realign()

    # What devices do --------------------------------------------------------------------------------------------------

    def _look_at(self, heard: np.ndarray) -> None:
        """Say once what the user can mend."""
        if self.source.silent and not self._said["silence"]:
            self.tell("notice", text=silence_advice(sys.platform))
        self._said["silence"] = self.source.silent
        if self.source.invalid and not self._said["invalid"]:
            self._said["invalid"] = True
            self.tell("notice", text="the microphone delivers samples that are not numbers; they are taken as silence")

    def _wait_for_devices(self, problem: str) -> None:
        """A device is gone: say so, wait for it, go on with the same conversation."""
        self.tell("notice", text=f"{problem}; waiting for it")
        if self.recorder is not None:
            self.recorder.note(problem)
        self.trace.instant(problem)
        self.status.state = "waiting"
        while not self.controls.stopping:
            self.source.suspend()
            self.sink.suspend()
            self.controls.wait(RETRY_SECONDS)
            if self.controls.stopping or self._try_devices():
                break
        self.status.state = "talking"

    def _try_devices(self) -> bool:
        """Open both sides again and see whether sound flows."""
        if self.restart_audio is not None:
            self.restart_audio()
        try:
            self._open()
        except AudioError:
            return False
        while not self.controls.stopping:
            heard = self.source.read(PATIENCE)
            if (heard is not None and self.sink.problem() is None) or self.source.ended:
                self.status.reconnects += 1
                self.tell("notice", text="the conversation continues")
                if heard is not None:
                    self._frame(heard)
                return True
            if self.source.problem() or self.sink.problem():
                return False
        return False


def _tell_nobody(kind: str, **fields) -> None:
    pass


def silence_advice(platform: str) -> str:
    """What to do about a microphone that delivers zeros, in the words of the system."""
    if platform == "darwin":
        return (
            "the microphone delivers digital silence: allow this program's terminal to use it in System Settings > "
            "Privacy & Security > Microphone and start again, or unmute it in System Settings > Sound"
        )
    return "the microphone delivers digital silence: unmute it, or choose another (--list-devices)"
