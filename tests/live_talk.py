"""The live program in its own process on virtual devices, and what a loudspeaker was heard to play.

Every wait ends with what it waits for: a slow machine makes it longer, `PATIENCE` is for programs that hang.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
from virtual_audio import MICROPHONE, SPEAKER, VirtualAudio

PROGRAM = Path(__file__).with_name("live_program.py")
RATE = 24000
PATIENCE = 300.0


class Talk:
    """`talker`: see `live_program.py`; None for the real program. Its events as they come."""

    def __init__(self, env: dict, *args, talker: str | None = "echo", microphone=MICROPHONE, speaker=SPEAKER):
        command = (
            [sys.executable, "-m", "moshi_mlx.local"] if talker is None else [sys.executable, str(PROGRAM), talker]
        )
        self.process = subprocess.Popen(
            [*command, "--json", "--input-device", microphone, "--output-device", speaker, *map(str, args)],
            env={**env, "PYTHONUNBUFFERED": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.events: list[dict] = []
        self.stderr = ""
        self._changed = threading.Condition()
        self._readers = [threading.Thread(target=f, daemon=True) for f in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._changed.notify_all()

    def _read_errors(self) -> None:
        for line in self.process.stderr:
            self.stderr += line

    def of(self, kind: str) -> list[dict]:
        with self._changed:
            return [e for e in self.events if e["event"] == kind]

    def wait_for(self, wanted, seconds: float = PATIENCE) -> dict:
        """The first event for which `wanted(event)` holds."""
        deadline, seen = time.monotonic() + seconds, 0
        with self._changed:
            while True:
                for event in self.events[seen:]:
                    if wanted(event):
                        return event
                seen = len(self.events)
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._readers[0].is_alive()):
                    self._give_up("it did not come")
                self._changed.wait(min(left, 0.5))

    def running(self, frames: int = 12) -> dict:
        """Wait until so many frames have been stepped."""
        return self.wait_for(lambda e: e["event"] == "status" and e["frames"] >= frames)

    def more(self, frames: int) -> dict:
        """Wait for as many frames more."""
        done = self.of("status")
        return self.running(frames + (done[-1]["frames"] if done else 0))

    def notice(self, text: str) -> dict:
        return self.wait_for(lambda e: e["event"] == "notice" and text in e["text"])

    def _give_up(self, what: str) -> None:
        if self.process.poll() is None:
            self.process.kill()
        raise AssertionError(f"{what}: {self.events[-3:]} {self.stderr}")

    def stop(self, sent: signal.Signals = signal.SIGINT) -> dict:
        """End it as a user would; its figures."""
        self.process.send_signal(sent)
        return self.end(128 + sent)

    def end(self, code: int = 0, seconds: float = PATIENCE) -> dict:
        """Wait for the end; its figures."""
        try:
            returned = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._give_up("it goes on")
        for reader in self._readers:
            reader.join(PATIENCE)
        assert returned == code, self.stderr
        assert "Traceback" not in self.stderr
        return self.events[-1]


def peak(pcm: np.ndarray, frequency: float) -> float:
    """Share of the power that is within 10 Hz of `frequency`."""
    power = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm)))) ** 2
    at = np.fft.rfftfreq(len(pcm), 1 / RATE)
    return float(power[np.abs(at - frequency) < 10].sum() / power.sum())


def tone(frequency: float, seconds: float, level: float = 0.4) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(int(RATE * seconds)) / RATE)).astype(np.float32)


def pieces_match(where: np.ndarray, what: np.ndarray, seconds: float = 0.1) -> float:
    """How well the pieces of `what` are found in `where`: the median of their largest normalised correlations.

    In pieces, because a busy machine tears gaps; the quiet ones are left out.
    """
    n = int(RATE * seconds)
    pieces = [what[at : at + n] for at in range(0, len(what) - n + 1, n)]
    size = 1 << (len(where) + n).bit_length()
    spectrum = np.fft.rfft(where, size)
    energy = np.cumsum(np.concatenate([[0.0], where.astype(np.float64) ** 2]))
    local = np.sqrt(np.maximum(energy[n:] - energy[:-n], 1e-9))
    found = []
    for piece in pieces:
        power = np.sum(piece.astype(np.float64) ** 2)
        if power / n > 1e-4:
            cross = np.fft.irfft(spectrum * np.conj(np.fft.rfft(piece, size)), size)[: len(local)]
            found.append(float((cross / local).max() / np.sqrt(power)))
    return float(np.median(found))


LOOP_BACK = "Loop_back"


def add_loop_back(audio: VirtualAudio) -> None:
    """A microphone that hears the loudspeaker, and nothing but it."""
    with (audio.folder / "alsa.conf").open("a") as f:
        f.write(f"pcm.{LOOP_BACK} {{ type pulse device speaker.monitor }}\n")


def round_trips(audio: VirtualAudio, returns: int = 5, tries: int = 20) -> np.ndarray:
    """Milliseconds between the returns of a click that goes round through `LOOP_BACK`, the talk and the loudspeaker."""
    click = np.zeros(2400, np.float32)
    click[1200:1206] = 0.9
    found: np.ndarray = np.zeros(0)
    for _ in range(tries):
        with audio.recording() as heard:
            audio.speak(click, "speaker").wait(PATIENCE)
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline and len(found) < returns:
                time.sleep(0.2)
                found = _clicks(heard.pcm)
        if len(found) >= returns:
            return np.diff(found[:returns]) / (RATE / 1000)
        found = np.zeros(0)
    raise AssertionError("no click came back often enough")


def _clicks(pcm: np.ndarray) -> np.ndarray:
    """Positions of the clicks in a recording; what may still be going on at its end is left out."""
    clicks, at = [], 0
    loud = np.flatnonzero(np.abs(pcm[: max(0, len(pcm) - 1000)]) > 0.01)
    for i in loud:
        if i >= at:
            clicks.append(int(i) + int(np.argmax(np.abs(pcm[i : i + 240]))))
            at = i + 1000
    return np.array(clicks)
