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

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np

from ..arguments import kind
from ..engine.state import put_rows
from ..errors import InputError
from ..models.mimi_model import MimiModel
from ..text import Word
from .checks import check_entry, check_unfinished
from .generator import TokenGenerator
from .machine import State
from .script import ScriptReader


@dataclass(frozen=True)
class SpeechFrame:
    """One step's sound of each utterance: `pcm[b]` float32 `[1920]`, `[0]` before it begins and after its end.

    `codes[b]` are the audio codes `[codebooks]` it was made of, None where there is no sound.
    """

    pcm: list[np.ndarray]
    codes: list[np.ndarray | None]


class Speech:
    """A batch of utterances, in lockstep or each by itself (see `TokenGenerator`). Belongs to the thread that made it."""

    def __init__(
        self, generator: TokenGenerator, mimi: MimiModel, readers: Sequence[ScriptReader], compile: bool = True
    ):
        self.generator, self.mimi = generator, mimi
        self._readers = list(readers)
        self._decoder = mimi.init_decoder(generator.batch, lockstep=not generator.own_clocks)
        self._blank = mimi.init_decoder(1, lockstep=False)
        self._decode: Callable = mx.compile(mimi.decode_chunk) if compile else mimi.decode_chunk
        self.entries_said = 0
        self.words_said = [0] * generator.batch

    def join(
        self, row: int, reader: ScriptReader, state: State, prefix: mx.array | None = None, **options: Any
    ) -> None:
        """Begin an utterance in `row`; `options` are those of `TokenGenerator.join`."""
        self.generator.join(row, state, prefix, **options)
        self._readers[row], self.words_said[row] = reader, 0
        self._decoder = put_rows(self._decoder, self._blank, [mx.array([row], mx.int32)])
        mx.eval(self._decoder)

    # Text in ----------------------------------------------------------------------------------------------------

    def say(self, text: str, row: int = 0) -> None:
        """Add text to what utterance `row` says. Words end at white space; a word may come in pieces. Not after `finish`."""
        self._check_open(row)
        self._add(self._readers[row].feed(kind("the text", text, str, "text")), row)

    def end_turn(self, row: int = 0) -> None:
        """What follows is said by the other speaker."""
        self._check_open(row)
        self._end_turn(row)

    def finish(self, row: int | None = None) -> None:
        """No more text will come, for any utterance or for that in `row`."""
        for b in range(len(self._readers)) if row is None else (row,):
            self._end_turn(b)
            self.generator.utterances[b].text_complete = True

    def _check_open(self, row: int) -> None:
        if self.generator.utterances[row].text_complete:
            raise InputError("this text was finished, and nothing can be added; begin another speech for what follows.")

    def _end_turn(self, row: int) -> None:
        self._add(self._readers[row].end_turn(), row)

    def _add(self, entries, row: int) -> None:
        window = self.generator.lm.cfg.transformer.context
        for entry in entries:
            check_entry(entry, window)
        check_unfinished(self._readers[row].pending, window)
        self.generator.utterances[row].state.entries.extend(entries)
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

    def step(self, rows: Collection[int] | None = None) -> SpeechFrame:
        """The next 80 ms, of all utterances or of `rows`, while the others stand still."""
        generator = self.generator
        frame = generator.step(rows)
        stepped = range(generator.batch) if rows is None else rows
        index = [u.offset - 1 - generator.max_delay for u in generator.utterances]
        sounds = [b in stepped and index[b] >= generator.delay_steps for b in range(generator.batch)]
        silent = SpeechFrame([np.zeros(0, np.float32)] * generator.batch, [None] * generator.batch)
        if frame is None or not any(sounds):
            mx.async_eval(generator.state)
            return silent
        decoder, self._decoder = self._decoder, {}
        tokens, execute = frame[:, 1:, None], None
        if generator.own_clocks:
            execute = mx.array(sounds)
            tokens = mx.where(execute[:, None, None], tokens, 0)
        pcm, self._decoder = self._decode(tokens, decoder, execute)
        pcm = mx.clip(pcm[:, 0], -1, 1)
        mx.async_eval(pcm, frame, self._decoder, generator.state)
        sound, codes = np.array(pcm), np.array(frame[:, 1:])
        for b, sounding in enumerate(sounds):
            if sounding and self._heard(b, index[b]):
                silent.pcm[b], silent.codes[b] = sound[b], codes[b]
        return silent

    def warm_up(self) -> None:
        """Make a step of no utterance (with `own_clocks`), so that none waits for what a step needs."""
        self.generator.step(())
        nothing = mx.zeros((self.generator.batch, self.generator.codebooks, 1), mx.int32)
        nobody = mx.zeros((self.generator.batch,), mx.bool_)
        pcm, self._decoder = self._decode(nothing, self._decoder, nobody)
        mx.eval(pcm, self._decoder, self.generator.state)

    def _heard(self, row: int, index: int) -> bool:
        """Whether frame `index` lies between the voice prefix and the end of the final padding."""
        generator, utterance = self.generator, self.generator.utterances[row]
        end = utterance.state.end_step
        first = generator.delay_steps + utterance.prefix_length
        return index >= first and (end is None or index < generator.delay_steps + end + generator.final_padding)

    def words(self, row: int = 0, pauses: bool = False, until: float | None = None) -> list[Word]:
        """Words begun so far, in seconds of this utterance's sound. A word lasts until the next word or pause begins.

        With `pauses` those too, as they were written in the text. `until` is where the sound ended: the text runs ahead of it, and words
        that were not heard are none.
        """
        generator = self.generator
        utterance = generator.utterances[row]
        state, prefix = utterance.state, utterance.prefix_length
        now = utterance.offset if state.end_step is None else state.end_step
        seconds = {step: max(0, step - prefix) / self.mimi.frame_rate for step in (*state.consumption_times, now)}
        following = dict(pairwise([*state.consumption_times, now]))
        said = sorted([*state.transcript, *state.pauses], key=lambda each: each[1]) if pauses else state.transcript
        words = [Word(text, seconds[step], seconds[following[step]]) for text, step in said]
        return [replace(w, end=min(w.end, until)) for w in words if w.start < until] if until is not None else words
