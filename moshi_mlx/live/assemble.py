"""From the words of a command to the parts of a talk: its two sides, and checks before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..audio import devices
from ..audio.capture import MAX_LAG
from ..audio.files import AudioReader, Raw
from ..audio.streams import Microphone, Speaker, Wanted, restart_portaudio
from ..errors import InputError
from .file_sides import FileSink, FileSource, NoSink, PacedFileSource, SteadyFileSource
from .sides import Sink, Source


@dataclass
class Sides:
    """Both sides of a talk. `described` names them; `restart_audio` is None where no device takes part."""

    source: Source
    sink: Sink
    described: tuple[str, str]
    restart_audio: Callable[[], None] | None = None

    @property
    def real_time(self) -> bool:
        return self.source.paced

    @property
    def lossless(self) -> bool:
        """Whether sound waits for whoever is late: nobody hears the reply while it is made."""
        return isinstance(self.source, FileSource)

    @property
    def loudspeaker_and_microphone(self) -> bool:
        """Whether an echo can come about."""
        return isinstance(self.source, Microphone) and isinstance(self.sink, Speaker)

    def close(self) -> None:
        self.source.close()
        self.sink.close()


def make_sides(
    input_file: str | None = None,
    output_file: str | None = None,
    *,
    input_device: str | None = None,
    output_device: str | None = None,
    input_channel: int | None = None,
    fast: bool = False,
    raw: Raw | None = None,
    tell: Callable[[str], None] | None = None,
    tail: float = 0.0,
    max_lag: float = MAX_LAG,
    device_latency: float = 0.04,
    frame_size: int = 1920,
    portaudio: Callable[[], Any] = devices.portaudio,
) -> Sides:
    """Files are opened and devices found and asked for their settings; no stream is opened yet.

    `input_channel` counts from 1. `fast`: a file as fast as it goes, without sound devices. `raw`: what samples it holds, if it has no
    header. `tell` is given notices about it.
    """
    if fast and input_file is None:
        raise InputError("--fast needs --input FILE: a microphone has its own pace.")
    for name, value, file in (
        ("--input-device", input_device, input_file),
        ("--output-device", output_device, output_file),
        ("--input-channel", input_channel, input_file),
    ):
        if value is not None and file is not None:
            raise InputError(f"{name} and {file} were both given: a side is a device or a file.")
    if input_file is None and tail:
        raise InputError("--tail needs --input FILE: it is the silence after the file.")
    if input_channel is not None and input_channel < 1:
        raise InputError(f"--input-channel counts from 1, found {input_channel}.")
    # Text alone is wanted of a fast run without an output.
    sd = None if input_file is not None and (output_file is not None or fast) else portaudio()
    source: Source
    sink: Sink
    if input_file is not None:
        reader = AudioReader(input_file, raw=raw, tell=tell)
        if fast:
            source = FileSource(reader, frame_size, tail)
        elif output_file is not None:
            source = SteadyFileSource(reader, frame_size, tail)
        else:
            source = PacedFileSource(reader, frame_size, tail, max_lag)
        heard_from = reader.name
    else:
        channel = None if input_channel is None else input_channel - 1
        microphone = Microphone(sd, Wanted(input_device, channel, latency=device_latency), frame_size, max_lag)
        source, heard_from = microphone, str(microphone.find())
    try:
        if output_file is not None:
            sink, spoken_to = FileSink(output_file), output_file
        elif fast:
            sink, spoken_to = NoSink(), "text only"
        else:
            speaker = Speaker(sd, Wanted(output_device, latency=device_latency))
            sink, spoken_to = speaker, str(speaker.find())
    except BaseException:
        source.close()
        raise
    restart = None if sd is None else lambda: restart_portaudio(sd)
    return Sides(source, sink, (heard_from, spoken_to), restart)
