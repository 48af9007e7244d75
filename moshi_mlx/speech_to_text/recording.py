"""What a model hears of a recording: silence or a prompt before it, silence after it, in whole frames (family.md 1.2, 1.6)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..audio.files import AudioReader
from ..errors import AudioError, InputError

# Seconds of silence after the model's delay: without it the last word is not finished.
TAIL_SECONDS = 1.0
# Silence between a prompt and the recording.
GAP_FRAMES = 10


@dataclass(frozen=True)
class AudioPrompt:
    """Speech heard before the recording, `pcm [n]`. Its transcript is left out unless `keep`."""

    pcm: np.ndarray
    keep: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What is heard before and after every recording, for a model with `delay` and `silence_prefix` seconds."""

    delay: float
    silence_prefix: float
    frame_size: int = 1920
    sample_rate: int = 24000
    prompt: AudioPrompt | None = None

    @property
    def frame_rate(self) -> float:
        return self.sample_rate / self.frame_size

    def before(self) -> np.ndarray:
        """Samples heard first: the silence to the sample, or silence, prompt and gap in whole frames."""
        if self.prompt is None:
            return np.zeros(int(self.silence_prefix * self.sample_rate), np.float32)
        silence = math.ceil(self.silence_prefix * self.frame_rate) * self.frame_size
        filling = -len(self.prompt.pcm) % self.frame_size + GAP_FRAMES * self.frame_size
        return np.pad(self.prompt.pcm, (silence, filling)).astype(np.float32)

    @property
    def lead(self) -> float:
        """Seconds heard before a recording begins."""
        return len(self.before()) / self.sample_rate

    @property
    def hidden_tokens(self) -> int:
        """Tokens at the beginning of the stream that are the prompt's transcript."""
        if self.prompt is None or self.prompt.keep:
            return 0
        prompt_frames = math.ceil(len(self.prompt.pcm) / self.frame_size)
        return prompt_frames + int((self.delay + self.silence_prefix) * self.frame_rate)

    def check_window(self, window: int | None) -> None:
        """Refuse a prompt that the model, which sees `window` frames, would have forgotten."""
        if self.prompt is not None and window is not None and self.lead * self.frame_rate > window:
            raise InputError(
                f"the audio prompt lasts {len(self.prompt.pcm) / self.sample_rate:.0f} s, longer than the model's window of "
                f"{window / self.frame_rate:.0f} s; it would be forgotten before the recording begins."
            )

    def frames(self, reader: AudioReader) -> Iterator[np.ndarray]:
        """All frames to hear, float32 `[frame_size]`, the last one filled with silence. Counts `reader.samples`."""
        return _framed(self._samples(reader), self.frame_size)

    def _samples(self, reader: AudioReader) -> Iterator[np.ndarray]:
        yield self.before()
        for block in reader.blocks():
            reader.samples += len(block)
            yield block
        if not reader.samples:
            raise AudioError(f"{reader.name} holds no audio.")
        yield np.zeros(int((self.delay + TAIL_SECONDS) * self.sample_rate), np.float32)


def _framed(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Blocks of any length as frames of `size` samples."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) // size * size
        yield from rest[:whole].reshape(-1, size)
        rest = rest[whole:]
    if len(rest):
        yield np.pad(rest, (0, size - len(rest)))
