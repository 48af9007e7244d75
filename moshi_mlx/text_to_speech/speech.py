"""Speech while its text is still being written: words in, 80 ms of sound out (family.md 2.5 and 2.8).

    speech = tts.speech(attributes)
    speech.say("Hello, ")                      # any pieces of text, words may be cut
    while speech.ready: play(speech.step())
    ...
    speech.finish()                            # no more text will come
    while not speech.done: play(speech.step())

The result does not depend on when the text came: a step waits until it knows the words it looks ahead to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..models.mimi_model import MimiModel
from ..text import Word
from .checks import check_entry, check_unfinished
from .generator import TokenGenerator

if TYPE_CHECKING:
    from .script import ScriptReader


@dataclass(frozen=True)
class SpeechFrame:
    """One step's sound of each utterance: `pcm[b]` float32 `[1920]`, `[0]` before it begins and after its end.

    `codes[b]` are the audio codes `[codebooks]` it was made of, None where there is no sound.
    """

    pcm: list[np.ndarray]
    codes: list[np.ndarray | None]


class Speech:
    """A batch of utterances in lockstep. Belongs to the thread that made it."""

    def __init__(
        self, generator: TokenGenerator, mimi: MimiModel, readers: Sequence[ScriptReader], compile: bool = True
    ):
        self.generator, self.mimi = generator, mimi
        self._readers = list(readers)
        self._decoder = mimi.init_decoder(generator.batch)
        self._decode: Callable = mx.compile(mimi.decode_chunk) if compile else mimi.decode_chunk
        self.entries_said = 0
        self.words_said = [0] * generator.batch

    # Text in ----------------------------------------------------------------------------------------------------

    def say(self, text: str, row: int = 0) -> None:
        """Add text to what utterance `row` says. Words end at white space; a word may come in pieces."""
        self._add(self._readers[row].feed(text), row)

    def end_turn(self, row: int = 0) -> None:
        """What follows is said by the other speaker."""
        self._add(self._readers[row].end_turn(), row)

    def finish(self) -> None:
        """No more text will come."""
        for row in range(len(self._readers)):
            self.end_turn(row)
        self.generator.text_complete = True

    def _add(self, entries, row: int) -> None:
        window = self.generator.lm.cfg.transformer.context
        for entry in entries:
            check_entry(entry, window)
        check_unfinished(self._readers[row].pending, window)
        self.generator.states[row].entries.extend(entries)
        self.entries_said += len(entries)
        self.words_said[row] += sum(bool(e.tokens) for e in entries)

    @property
    def tags_left_out(self) -> list[str]:
        """Markup that says nothing a voice could do, as it was written."""
        return [tag for reader in self._readers for tag in reader.left_out]

    # Sound out --------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether enough text is known for a step."""
        return not self.done and self.generator.ready

    @property
    def done(self) -> bool:
        """Whether all sound is out."""
        return self.generator.done

    @property
    def entries_left(self) -> int:
        """Words and pauses that have not begun yet."""
        return sum(len(s.entries) for s in self.generator.states)

    def step(self) -> SpeechFrame:
        """The next 80 ms."""
        generator = self.generator
        frame = generator.step()
        index = generator.offset - 1 - generator.max_delay
        if frame is None or index < generator.delay_steps:
            mx.async_eval(generator.state)
            return SpeechFrame([np.zeros(0, np.float32)] * generator.batch, [None] * generator.batch)
        decoder, self._decoder = self._decoder, {}
        pcm, self._decoder = self._decode(frame[:, 1:, None], decoder)
        pcm = mx.clip(pcm[:, 0], -1, 1)
        mx.async_eval(pcm, frame, self._decoder, generator.state)
        sound, codes = np.array(pcm), np.array(frame[:, 1:])
        heard = [self._heard(row, index) for row in range(generator.batch)]
        return SpeechFrame(
            [sound[b] if h else sound[b, :0] for b, h in enumerate(heard)],
            [codes[b] if h else None for b, h in enumerate(heard)],
        )

    def _heard(self, row: int, index: int) -> bool:
        """Whether frame `index` lies between the voice prefix and the end of the final padding."""
        generator = self.generator
        end = generator.states[row].end_step
        first = generator.delay_steps + generator.prefix_lengths[row]
        return index >= first and (end is None or index < generator.delay_steps + end + generator.final_padding)

    def words(self, row: int = 0) -> list[Word]:
        """Words begun so far, in seconds of this utterance's sound. A word lasts until the next word or pause begins."""
        generator = self.generator
        state, prefix = generator.states[row], generator.prefix_lengths[row]
        now = generator.offset if state.end_step is None else state.end_step
        seconds = {step: max(0, step - prefix) / self.mimi.frame_rate for step in (*state.consumption_times, now)}
        following = dict(zip(state.consumption_times, [*state.consumption_times[1:], now], strict=True))
        return [Word(text, seconds[step], seconds[following[step]]) for text, step in state.transcript]
