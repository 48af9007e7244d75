"""Utterances in the rows of one batch: many clients are read to by one model, each as if alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import arguments
from ..config.reader import MOST
from ..engine.kind import Outcome
from ..engine.row_state import Manner
from ..engine.streams import Bounds, EndTurn, Inbox, Say, Voice, WhenFull
from ..errors import InputError
from ..modules.conditioner import ConditionAttributes
from ..modules.sampling import Sampler
from ..text import Word
from .checks import Speakable
from .tts_model import TTSModel
from .voices import TENSOR

# Frames that a client has not read, characters that it sent ahead, and words taken apart ahead of what is spoken.
OUTPUT_FRAMES, CHARACTERS, WORDS_AHEAD = 256, 1 << 20, 256
_PREFIXES_KEPT = 8
# Frames of a voice that comes as an embedding, where the usual voice does not say how many there are.
LONGEST_CLONE = 1000


@dataclass(frozen=True)
class Speak:
    """How one utterance is spoken; what is None is as the model says.

    `voices`: names or files, main speaker first. `cfg_coef`: guidance, of the kind the model has. `attributes` stand for voices and
    guidance of models with conditions. `pad_bonus` is added to the model's own: above 0 slows speech down. `cloned` stands for voices:
    an embedding `[1, dim, T]` for models that take those, the codes `[codebooks, T]` of a clip for those that go on from one.
    `tell_pauses`: those that the text asks for are told like words, as they were written.
    """

    voices: Sequence[str | Path] = ()
    seed: int = 0
    cfg_coef: float | None = None
    text_sampler: Sampler | None = None
    audio_sampler: Sampler | None = None
    padding_between: int = 1
    pad_bonus: float = 0.0
    attributes: ConditionAttributes | None = None
    cloned: np.ndarray | None = None
    tell_pauses: bool = False


@dataclass(frozen=True)
class Spoken:
    """80 ms of speech, `pcm` float32 `[1920]` made of `codes [codebooks]`, and the words that are complete by now.

    Words that are complete while nothing sounds come with an empty `pcm` and no codes.
    """

    pcm: np.ndarray
    codes: np.ndarray | None
    words: list[Word]


class Utterances:
    """Rows of speech by one model. Belongs to the thread that made it; a `Kind` of the scheduler.

    `usual`: what most clients will ask for. Its voices decide how much room the conditions of a row have at first.
    """

    def __init__(
        self,
        tts: TTSModel,
        rows: int,
        usual: Speak | None = None,
        *,
        compile: bool = True,
        kv_bits: int | None = None,
    ):
        rows = arguments.whole("rows", rows, 1, MOST)
        self.tts, self.rows = arguments.kind("tts", tts, TTSModel, "a TTSModel"), rows
        self._usual = _checked(Speak() if usual is None else usual)
        self._prefixes: dict[str, mx.array] = {}
        # Embeddings that clients bring are as long as the usual ones at most: longer ones would need a trace of their own.
        self._longest_clone = LONGEST_CLONE
        attributes = self._attributes(self._usual)
        if self._usual.voices and TENSOR in attributes.tensor:
            self._longest_clone = attributes.tensor[TENSOR].tensor.shape[1] // tts.max_speakers
        self.speech = tts.speech([attributes] * rows, seed=0, compile=compile, own_clocks=True, kv_bits=kv_bits)
        self._utterances: list[_Client | None] = [None] * rows
        self.frame_size, self.sample_rate = tts.mimi.frame_size, tts.mimi.sample_rate
        self.bounds = Bounds(0, OUTPUT_FRAMES, WhenFull.PAUSE, CHARACTERS, self.sample_rate, self.frame_size)
        # Traces and kernels, before anybody waits for them.
        self.speech.warm_up()

    def _attributes(self, speak: Speak) -> ConditionAttributes:
        if speak.attributes is not None:
            return speak.attributes
        tts = self.tts
        if not tts.multi_speaker:
            return tts.make_condition_attributes()
        coef = speak.cfg_coef if tts.valid_cfg_conditionings else None
        if speak.cloned is not None:
            if np.shape(speak.cloned)[-1] > self._longest_clone:
                raise InputError(
                    f"a voice may last {self._longest_clone} frames here, found {np.shape(speak.cloned)[-1]}."
                )
            return tts.make_condition_attributes([speak.cloned], coef)
        return tts.make_condition_attributes([tts.get_voice_path(str(name)) for name in speak.voices], coef)

    def _prefix(self, speak: Speak) -> mx.array | None:
        """The clip that a model without voice embeddings goes on from."""
        if self.tts.multi_speaker:
            return None
        if speak.cloned is not None:
            return self.tts.read_prefix(speak.cloned)
        if not speak.voices:
            return None
        if len(speak.voices) > 1:
            raise InputError(f"this model speaks with one voice, {len(speak.voices)} were given.")
        path = str(self.tts.get_voice_path(str(speak.voices[0])))
        if path not in self._prefixes:
            while len(self._prefixes) >= _PREFIXES_KEPT:
                del self._prefixes[next(iter(self._prefixes))]
            self._prefixes[path] = self.tts.get_prefix(path)
        return self._prefixes[path]

    # Coming and going -----------------------------------------------------------------------------------------------

    def join(self, row: int, options: Speak | None = None) -> Iterator[None]:
        """Begin an utterance in `row`: its voice is read, then the row is made ready."""
        speak = self._usual if options is None else _checked(options)
        attributes, prefix = self._attributes(speak), self._prefix(speak)
        yield
        coef = None if self.tts.valid_cfg_conditionings else speak.cfg_coef
        manner = Manner(speak.text_sampler, speak.audio_sampler, coef, pad_bonus=speak.pad_bonus)
        self.tts.join(
            self.speech,
            row,
            attributes,
            prefix,
            padding_between=speak.padding_between,
            seed=speak.seed,
            manner=manner,
        )
        self._utterances[row] = _Client(speak, Speakable(self.tts.tokenizer))

    def leave(self, row: int) -> None:
        self._utterances[row] = None

    # Stepping -------------------------------------------------------------------------------------------------------

    def ready(self, row: int, inbox: Inbox) -> bool:
        client = self._client(row)
        takes = inbox.has_message and self._words_ahead(row) < WORDS_AHEAD
        return takes or (inbox.at_end and not client.finished) or self._can_step(row)

    def collect(self, row: int, inbox: Inbox) -> bool:
        """Take what was written so far; whether the row can make a step."""
        client = self._client(row)
        while inbox.has_message and self._words_ahead(row) < WORDS_AHEAD:
            message: Any = inbox.message()
            if isinstance(message, Say):
                self.speech.say(client.speakable(message.text), row)
            elif isinstance(message, EndTurn):
                self.speech.end_turn(row)
            elif isinstance(message, Voice):
                self._change_voice(row, message.values)
                client = self._client(row)
        if inbox.at_end and not client.finished:
            client.finished = True
            self.speech.finish(row)
        return self._can_step(row)

    def _change_voice(self, row: int, values: np.ndarray) -> None:
        """Begin anew with a voice that came after the row was given."""
        client = self._client(row)
        if self.speech.words_said[row]:
            raise InputError("a voice should come before the first word that it says.")
        for _ in self.join(row, replace(client.speak, cloned=values, attributes=None)):
            pass

    def step(self, given: dict[int, bool]) -> dict[int, Outcome]:
        """One step of the rows that can make one."""
        rows = [row for row, steps in given.items() if steps]
        frame = self.speech.step(rows) if rows else None
        outcomes = {}
        for row in given:
            client = self._client(row)
            # Nothing was written that could be said.
            done = self.speech.generator.done_row(row) or (client.finished and not self.speech.words_said[row])
            words = self._new_words(row, done)
            pcm, codes = (frame.pcm[row], frame.codes[row]) if frame is not None else (np.zeros(0, np.float32), None)
            items = [Spoken(pcm, codes, words)] if codes is not None or words else []
            outcomes[row] = Outcome(items, done)
        return outcomes

    def _can_step(self, row: int) -> bool:
        generator, client = self.speech.generator, self._client(row)
        if generator.done_row(row) or (client.finished and not self.speech.words_said[row]):
            return False
        # Silence before the first word is not made ahead of it.
        return generator.ready_row(row) and self.speech.words_said[row] > 0

    def _words_ahead(self, row: int) -> int:
        return len(self.speech.generator.utterances[row].state.entries)

    def _new_words(self, row: int, done: bool) -> list[Word]:
        """Words that are complete and have not been told: the last one is when the next begins, or at the end."""
        client, state = self._client(row), self.speech.generator.utterances[row].state
        begun = len(state.transcript) + (len(state.pauses) if client.speak.tell_pauses else 0)
        complete = begun if done else begun - 1
        if complete <= client.words_told:
            return []
        words = self.speech.words(row, client.speak.tell_pauses)[client.words_told : complete]
        client.words_told = complete
        return words

    def _client(self, row: int) -> _Client:
        client = self._utterances[row]
        if client is None:
            raise InputError(f"nothing is spoken in row {row}: join it first.")
        return client


def _checked(speak: Any) -> Speak:
    """What a client wishes, as far as it can be judged without the model."""
    arguments.kind("an utterance's wishes", speak, Speak, "a Speak")
    listed = isinstance(speak.voices, Sequence) and not isinstance(speak.voices, str)
    if not listed or not all(isinstance(v, (str, Path)) for v in speak.voices):
        raise InputError(f"voices should be a list of names and files, found {arguments.shown(speak.voices)}.")
    arguments.whole("seed", speak.seed)
    if speak.cfg_coef is not None:
        arguments.number("cfg_coef", speak.cfg_coef)
    for name in ("text_sampler", "audio_sampler"):
        if getattr(speak, name) is not None:
            arguments.kind(name, getattr(speak, name), Sampler, "a Sampler")
    arguments.whole("padding_between", speak.padding_between, 0)
    arguments.number("pad_bonus", speak.pad_bonus)
    if speak.attributes is not None:
        arguments.kind("attributes", speak.attributes, ConditionAttributes, "ConditionAttributes")
    return speak


@dataclass
class _Client:
    """What is known of an utterance beside the speech."""

    speak: Speak
    speakable: Speakable
    finished: bool = False
    words_told: int = 0
