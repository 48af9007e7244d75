"""Real PortAudio on a machine without a sound card: a private PulseAudio server with null sinks, and ALSA devices on top.

A null sink is a loudspeaker whose monitor records what it played; the monitor of another one is a microphone into which
`speak` plays. Debian packages: pulseaudio pulseaudio-utils libportaudio2 libasound2-plugins, and jackd2 for `Jack`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

MICROPHONE, SPEAKER = "Desk_microphone", "Desk_speaker"
RATE = 24000
# A busy machine may take long to start a server.
START_SECONDS = 120
# In the order ALSA has them.
PLACES = {1: "mono", 8: "front-left,front-right,rear-left,rear-right,front-center,lfe,side-left,side-right"}

# PortAudio lists these names as devices.
ALSA = f"""
</usr/share/alsa/alsa.conf>
pcm.{MICROPHONE} {{ type pulse device mic }}
pcm.{SPEAKER} {{ type pulse device speaker }}
"""


def available() -> bool:
    """Whether this machine has what it takes."""
    plugins = [*Path("/usr/lib").glob("*/alsa-lib/libasound_module_pcm_pulse.so")]
    return bool(plugins) and all(shutil.which(c) for c in ("pulseaudio", "pactl", "paplay", "parec"))


def jack_available() -> bool:
    return shutil.which("jackd") is not None


class VirtualAudio:
    """The server; `env` is the environment in which programs see its devices."""

    def __init__(self, folder: Path, microphone_channels: int = 1):
        self.folder, self.channels = folder, microphone_channels
        runtime = folder / "run"
        runtime.mkdir(parents=True, exist_ok=True)
        runtime.chmod(0o700)
        (folder / "alsa.conf").write_text(ALSA)
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PULSE_")},
            "XDG_RUNTIME_DIR": str(runtime),
            "PULSE_SERVER": f"unix:{runtime}/native",
            "HOME": str(folder),
            "ALSA_CONFIG_PATH": str(folder / "alsa.conf"),
        }
        self._server: subprocess.Popen | None = None
        self.start()

    def start(self) -> None:
        (self.folder / "run" / "native").unlink(missing_ok=True)
        modules = [
            f"module-native-protocol-unix socket={self.folder}/run/native auth-anonymous=1",
            self._sink("speaker", 1),
            self._sink("mic_sink", self.channels),
            # Floating point all the way: a device can then deliver what is not a number.
            f"module-remap-source master=mic_sink.monitor source_name=mic format=float32le channels={self.channels} "
            f"channel_map={PLACES[self.channels]}",
        ]
        command = [
            "pulseaudio",
            "-n",
            "--daemonize=no",
            "--use-pid-file=no",
            "--exit-idle-time=-1",
            "--disallow-exit=yes",
        ]
        for m in modules:
            command += ["-L", m]
        self._log = (self.folder / "pulseaudio.log").open("w")
        self._server = subprocess.Popen(command, env=self.env, stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if subprocess.run(["pactl", "info"], env=self.env, capture_output=True, check=False).returncode == 0:
                return
            if self._server.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError((self.folder / "pulseaudio.log").read_text())

    def _sink(self, name: str, channels: int) -> str:
        return f"module-null-sink sink_name={name} rate={RATE} channels={channels} format=float32le channel_map={PLACES[channels]}"

    def kill(self) -> None:
        """All devices vanish at once."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
            self._log.close()

    stop = kill

    def pactl(self, *words: str) -> str:
        return subprocess.run(["pactl", *words], env=self.env, capture_output=True, text=True, check=True).stdout

    def suspend(self, kind: str, name: str, suspended: bool = True) -> None:
        """A device that stands still: kind "sink" or "source"."""
        self.pactl(f"suspend-{kind}", name, "1" if suspended else "0")

    def speak(self, pcm: np.ndarray, sink: str = "mic_sink") -> subprocess.Popen:
        """Play float `pcm [n]` or `[n, channels]` into the microphone (or another sink); returns at once."""
        channels = 1 if pcm.ndim == 1 else pcm.shape[1]
        command = ["pacat", "--playback", f"--device={sink}", "--format=float32le", f"--rate={RATE}"]
        command += [f"--channels={channels}", f"--channel-map={PLACES[channels]}", "--raw", "--latency-msec=40"]
        process = subprocess.Popen(command, env=self.env, stdin=subprocess.PIPE)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(pcm.astype("<f4").tobytes())
            process.stdin.close()
        return process

    @contextlib.contextmanager
    def recording(self, sink: str = "speaker") -> Iterator[Recording]:
        """What a loudspeaker plays meanwhile."""
        path = self.folder / f"heard-{time.monotonic_ns()}.raw"
        command = ["parec", f"--device={sink}.monitor", "--format=float32le", f"--rate={RATE}", "--channels=1", "--raw"]
        with path.open("wb") as f:
            process = subprocess.Popen([*command, "--latency-msec=20"], env=self.env, stdout=f)
            try:
                yield Recording(path)
            finally:
                process.terminate()
                process.wait()


class Recording:
    def __init__(self, path: Path):
        self._path = path

    @property
    def pcm(self) -> np.ndarray:
        """Float `[n]` so far."""
        data = self._path.read_bytes()
        return np.frombuffer(data[: len(data) // 4 * 4], "<f4")


class Jack:
    """A JACK server with a dummy driver: real PortAudio devices that know one sample rate."""

    def __init__(self, rate: int):
        self.name = f"test{os.getpid()}"
        self.env = {
            **os.environ,
            "JACK_DEFAULT_SERVER": self.name,
            "JACK_NO_AUDIO_RESERVATION": "1",
            "JACK_NO_START_SERVER": "1",
        }
        command = ["jackd", "--no-realtime", "-n", self.name, "-d", "dummy", "-r", str(rate), "-p", "512"]
        self._server = subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(["jack_lsp"], env=self.env, capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline or self._server.poll() is not None:
                self.stop()
                raise RuntimeError("jackd did not start")
            time.sleep(0.1)

    def connect(self, a: str, b: str) -> None:
        subprocess.run(["jack_connect", a, b], env=self.env, capture_output=True, check=True)

    def ports(self) -> list[str]:
        return subprocess.run(["jack_lsp"], env=self.env, capture_output=True, text=True, check=True).stdout.split("\n")

    def stop(self) -> None:
        self._server.terminate()
        self._server.wait(START_SECONDS)
