"""Conversations: what the user's microphone hears, what Moshi says, and the text with it.

Both sides share one clock. Moshi's answers start on a frame, a little after the question ends;
they stop when the user interrupts, and go on through a mere "uh-huh".
"""

import math
import random
from dataclasses import dataclass, field

import numpy as np

from . import domain
from .augment import at_level, coloured_noise, user_channel
from .corpus import MOSHI_LEVEL_DB
from .espeak import Espeak, Utterance, Voice
from .rates import FRAME_SIZE, SAMPLE_RATE
from .voices import MOSHI_VOICE, sample_voice

# Seconds from the end of a question to the answer's first frame, before rounding up to a frame.
ANSWER_AFTER_S = (0.20, 0.36)
# Seconds from the start of an interruption to Moshi's silence, before rounding up to a frame.
STOP_AFTER_S = (0.30, 0.42)
FADE = 360  # samples: 15 ms, so that a stop does not click

KIND_WEIGHTS = {
    "sum": 0.26, "sum3": 0.14, "repeat": 0.28, "greet": 0.07, "name": 0.06, "thanks": 0.04,
    "bye": 0.04, "about": 0.05, "count": 0.06,
}  # fmt: skip
BACKCHANNEL_SHARE, OTHER_SPEECH_SHARE = 0.12, 0.05
INTERRUPT_SHARE, BACKCHANNEL_OVER_ANSWER_SHARE = 0.2, 0.12
QUIET_SESSION_SHARE, CLEAN_SHARE, SAME_VOICE_SHARE = 0.06, 0.45, 0.85


@dataclass
class Answer:
    """One of Moshi's utterances, perhaps cut short. `frame` is that of its onset, `stop` the first sample of silence."""

    utterance: Utterance
    frame: int
    stop: int

    @property
    def start(self) -> int:
        return self.frame * FRAME_SIZE

    @property
    def wav(self) -> np.ndarray:
        """Samples [stop - start]; a cut is faded."""
        length = self.stop - self.start
        wav = self.utterance.wav[:length].copy()
        if length < len(self.utterance.wav):
            fade = min(FADE, length)
            wav[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        return wav


@dataclass
class Turn:
    """What the user says at once; of a question, `words` are (word, sample of its end), and the `answer`."""

    wav: np.ndarray
    words: list[tuple[str, int]] = field(default_factory=list)
    answer: str = ""


@dataclass
class Session:
    """`user`: samples [1920 F]; `answers`: Moshi's side; `words`: (frame of onset, word) of it;
    `heard`: (frame, word) of the user's side, one frame after the word's end;
    `active`: [F] booleans, frames near Moshi's speech."""

    user: np.ndarray
    active: np.ndarray
    answers: list[Answer] = field(default_factory=list)
    words: list[tuple[int, str]] = field(default_factory=list)
    heard: list[tuple[int, str]] = field(default_factory=list)


class Composer:
    """Makes random sessions; the same seed gives the same sessions."""

    def __init__(self, seed: int, espeak: Espeak | None = None):
        self.rng, self.np_rng = random.Random(seed), np.random.default_rng(seed)
        self.espeak = espeak or Espeak()
        self.exchanges = {kind: domain.exchanges(kind) for kind in domain.KINDS}
        self._answers: dict[str, Utterance] = {}

    def answer(self, text: str) -> Utterance:
        """Moshi's voice saying `text`, at its fixed level."""
        if text not in self._answers:
            utterance = self.espeak.say(text, MOSHI_VOICE)
            utterance.wav = at_level(utterance.wav, MOSHI_LEVEL_DB)
            self._answers[text] = utterance
        return self._answers[text]

    def session(self, frames: int) -> Session:
        """One conversation of `frames` frames."""
        length, rng = frames * FRAME_SIZE, self.rng
        made = Session(np.zeros(length, np.float32), np.zeros(frames, bool))
        if rng.random() >= QUIET_SESSION_SHARE:
            self._talk(made, length)
        elif rng.random() < 0.5:
            self._only_backchannels(made, length)
        if rng.random() >= CLEAN_SHARE:
            made.user += coloured_noise(self.np_rng, length, rng.uniform(-75, -38))
        np.clip(made.user, -1, 1, out=made.user)
        return made

    def _talk(self, made: Session, length: int) -> None:
        rng, voice = self.rng, sample_voice(self.rng)
        at = _samples(rng.choice([rng.uniform(0.1, 1), rng.uniform(1, 3), rng.uniform(1, 8)]))
        answer: Answer | None = None  # the one that may still be interrupted
        interrupting = False
        while True:
            if rng.random() >= SAME_VOICE_SHARE:
                voice = sample_voice(rng)
            turn = self._user_turn(voice, question=interrupting)
            start, end = at, at + len(turn.wav)
            if end >= length:
                break
            made.user[start:end] += turn.wav
            if answer:
                if interrupting:
                    stop = _next_frame(at + _samples(rng.uniform(*STOP_AFTER_S))) * FRAME_SIZE
                    answer.stop = min(answer.stop, stop)
                self._say(made, answer)
                answer = None
            interrupting = False
            heard = [(_next_frame(start + stop) + 1, word) for word, stop in turn.words]
            at = end + _samples(self._pause())
            if not turn.answer:
                made.heard += heard
                continue
            utterance = self.answer(turn.answer)
            frame = _next_frame(end + _samples(rng.uniform(*ANSWER_AFTER_S)))
            answer = Answer(utterance, frame, frame * FRAME_SIZE + len(utterance.wav))
            if answer.stop + FRAME_SIZE >= length:
                answer = None
                made.user[start:] = 0  # a question whose answer would not fit any more
                break
            made.heard += heard
            at = answer.stop + _samples(self._pause())
            spoken = (answer.stop - answer.start) / SAMPLE_RATE
            if spoken > 0.8 and rng.random() < INTERRUPT_SHARE:
                at = answer.start + _samples(rng.uniform(0.0, spoken - 0.4))
                interrupting = True
            elif spoken > 0.8 and rng.random() < BACKCHANNEL_OVER_ANSWER_SHARE:
                self._murmur(made, voice, answer.start + _samples(rng.uniform(0.1, spoken - 0.3)))
        if answer:
            self._say(made, answer)

    def _user_turn(self, voice: Voice, question: bool) -> Turn:
        """A question; or, unless it has to be one, a back-channel or other speech."""
        rng, choice = self.rng, self.rng.random()
        if not question and choice < BACKCHANNEL_SHARE:
            return Turn(self._backchannel(voice))
        if not question and choice < BACKCHANNEL_SHARE + OTHER_SPEECH_SHARE:
            said = self.espeak.say(domain.general_sentence(rng), voice)
            return Turn(user_channel(self.np_rng, said.wav))
        kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
        exchange = rng.choice(self.exchanges[kind])
        said = self.espeak.say(exchange.prompt, voice)
        ends = [onset for _, onset in said.words[1:]] + [len(said.wav)]
        words = [(word, end) for (word, _), end in zip(said.words, ends, strict=True)]
        return Turn(user_channel(self.np_rng, said.wav), words, exchange.answer)

    def _backchannel(self, voice: Voice) -> np.ndarray:
        text, spelling = self.rng.choice(list(domain.BACKCHANNELS.items()))
        return user_channel(self.np_rng, self.espeak.say(text, voice, spelling).wav)

    def _murmur(self, made: Session, voice: Voice, at: int) -> None:
        speech = self._backchannel(voice)[: len(made.user) - at]
        made.user[at : at + len(speech)] += speech

    def _only_backchannels(self, made: Session, length: int) -> None:
        voice = sample_voice(self.rng)
        at = _samples(self.rng.uniform(0.2, 3))
        while at < length:
            self._murmur(made, voice, at)
            at += _samples(self.rng.uniform(1, 5))

    def _pause(self) -> float:
        """Seconds before the user speaks again."""
        rng = self.rng
        return rng.uniform(2.5, 6) if rng.random() < 0.15 else rng.uniform(0.3, 2.5)

    def _say(self, made: Session, answer: Answer) -> None:
        """Add an answer, possibly cut short, to the session."""
        made.answers.append(answer)
        length = answer.stop - answer.start
        for word, onset in answer.utterance.words:
            if onset < length:
                made.words.append((answer.frame + onset // FRAME_SIZE, word))
        made.active[max(0, answer.frame - 2) : _next_frame(answer.stop) + 2] = True


def _samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)


def _next_frame(sample: int) -> int:
    return math.ceil(sample / FRAME_SIZE)
