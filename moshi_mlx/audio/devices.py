"""Sound devices: which there are, which one is meant, and how it can be opened.

PortAudio is loaded when a device is first needed, so that files work on machines without it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import AudioError

Kind = Literal["input", "output"]
SAMPLE_RATE = 24000
# Tried after the wanted rate and the device's own.
RATES = (48000, 44100, 96000, 88200, 32000, 16000, 192000, 176400, 22050, 11025, 8000)


def portaudio() -> Any:
    """The module `sounddevice`."""
    try:
        import sounddevice
    except OSError:
        raise AudioError(
            "PortAudio, which reaches microphones and loudspeakers, is not installed: run `apt-get install libportaudio2` "
            "(or your system's equivalent), or use --input FILE and --output FILE."
        ) from None
    return sounddevice


@dataclass(frozen=True)
class Device:
    """One device as PortAudio lists it."""

    index: int
    name: str
    host: str
    inputs: int
    outputs: int
    rate: float
    default_input: bool = False
    default_output: bool = False

    def channels(self, kind: Kind) -> int:
        return self.inputs if kind == "input" else self.outputs

    def is_default(self, kind: Kind) -> bool:
        return self.default_input if kind == "input" else self.default_output


def devices(sd: Any) -> list[Device]:
    """Everything PortAudio knows at the moment it was initialised."""
    hosts = sd.query_hostapis()
    default_input, default_output = (int(i) for i in sd.default.device)
    found = []
    for i, d in enumerate(sd.query_devices()):
        host = hosts[d["hostapi"]]
        found.append(
            Device(
                i, str(d["name"]), str(host["name"]), int(d["max_input_channels"]), int(d["max_output_channels"]),
                float(d["default_samplerate"]),
                i == (default_input if default_input >= 0 else _default(hosts, "input")),
                i == (default_output if default_output >= 0 else _default(hosts, "output")),
            )
        )  # fmt: skip
    return found


def _default(hosts: Any, kind: Kind) -> int:
    """The first host's default, which is what PortAudio takes when nothing is named."""
    return next((int(h[f"default_{kind}_device"]) for h in hosts if h[f"default_{kind}_device"] >= 0), -1)


def table(found: list[Device]) -> str:
    """One line per device; > marks the default microphone, < the default loudspeaker."""
    if not found:
        return "no sound devices found."
    width = max(len(d.name) for d in found)
    lines = []
    for d in found:
        mark = (">" if d.default_input else " ") + ("<" if d.default_output else " ")
        lines.append(
            f"{mark}{d.index:3d}  {d.name:{width}}  {d.inputs} in, {d.outputs} out, {d.rate:.0f} Hz  ({d.host})"
        )
    return "\n".join([*lines, "", "> default microphone, < default loudspeaker"])


def choose(found: list[Device], kind: Kind, wanted: str | int | None) -> Device:
    """The device meant by a number, a part of its name (upper or lower case), or nothing (the default)."""
    noun = "microphone" if kind == "input" else "loudspeaker"
    able = [d for d in found if d.channels(kind)]
    if not able:
        raise AudioError(f"no {noun} was found. Connect one, or name a file with --{kind} FILE.")
    if wanted is None:
        default = next((d for d in able if d.is_default(kind)), None)
        if default is None:
            raise AudioError(f"the system has no default {noun}. Choose one with --{kind}-device: {_names(able)}.")
        return default
    text = str(wanted).strip()
    if text.isdecimal():
        number = next((d for d in found if d.index == int(text)), None)
        if number is None:
            raise AudioError(f"there is no device number {text}. There are: {_names(able)}.")
        if not number.channels(kind):
            raise AudioError(f"device {text} ({number.name}) is no {noun}. Choose from: {_names(able)}.")
        return number
    exact = [d for d in able if d.name.lower() == text.lower()]
    matches = exact or [d for d in able if text.lower() in d.name.lower()]
    if not matches:
        raise AudioError(f"no {noun} has {text!r} in its name. There are: {_names(able)}.")
    if len({d.name for d in matches}) > 1:
        raise AudioError(f"{text!r} fits several devices: {_names(matches)}. Give more of the name, or the number.")
    return matches[0]


def _names(found: list[Device]) -> str:
    return ", ".join(f"{d.index} {d.name}" for d in found)


@dataclass(frozen=True)
class Settings:
    """How a device will be opened."""

    device: Device
    kind: Kind
    rate: int
    channels: int
    block: int
    latency: float

    def __str__(self) -> str:
        resampled = "" if self.rate == SAMPLE_RATE else f" at {self.rate} Hz, resampled"
        return f"{self.device.name}{resampled}"


def settle(
    sd: Any, device: Device, kind: Kind, *, channel: int | None = None, block: float = 0.01, latency: float = 0.04
) -> Settings:
    """Settings the device agrees to: 24 kHz if it can, few channels if it can. Nothing is opened.

    `channel` (from 0): the only one that counts. `block` and `latency` in seconds.
    """
    if channel is not None and channel >= device.channels(kind):
        raise AudioError(
            f"{device.name} has {device.channels(kind)} input channels, channel {channel + 1} was asked for."
        )
    check = sd.check_input_settings if kind == "input" else sd.check_output_settings
    problem = ""
    for rate in dict.fromkeys((SAMPLE_RATE, round(device.rate), *RATES)):
        if rate <= 0:
            continue
        for channels in _channel_counts(device, kind, channel):
            try:
                check(device=device.index, channels=channels, samplerate=rate, dtype="float32")
            except (sd.PortAudioError, ValueError) as e:
                problem = problem or str(e)
                continue
            return Settings(device, kind, rate, channels, round(block * rate), latency)
    noun = "microphone" if kind == "input" else "loudspeaker"
    raise AudioError(
        f"the {noun} {device.name} refuses every sample rate ({problem}). Close programs that use it, or choose another "
        f"with --{kind}-device (--list-devices shows them)."
    )


def _channel_counts(device: Device, kind: Kind, channel: int | None) -> Iterator[int]:
    """Channel counts to try, best first: a microphone's first channel, a loudspeaker's pair."""
    most = device.channels(kind)
    if channel is not None:
        counts = [channel + 1, most]
    elif kind == "input":
        counts = [1, 2, most]
    else:
        counts = [2, 1, most]
    yield from dict.fromkeys(c for c in counts if 1 <= c <= most)
