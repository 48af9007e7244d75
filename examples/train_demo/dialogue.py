"""Conversations: what the user's microphone hears, what Moshi says, and the text with it.

Both sides share one clock. Moshi's answers start on a frame, a little after the question ends; they stop when the user
interrupts, and go on through a mere "uh-huh".
"""

import random
from dataclasses import dataclass, field

import numpy as np

from .rates import FRAME_SIZE, SAMPLE_RATE
from .scene import Placed, Scene, next_frame, samples
from .takes import ASK, MURMUR, OTHER, Take, Takes

# Seconds from the end of a question to the answer's first frame, before rounding up to a frame.
ANSWER_AFTER_S = (0.20, 0.36)
# Seconds from the start of an interruption to Moshi's silence, before rounding up to a frame. A few are late: a model that has
# never seen itself talk on into an interruption does not stop once it has missed the moment.
STOP_AFTER_S, LATE_STOP_S, LATE_STOP_SHARE = (0.22, 0.34), (0.36, 0.9), 0.04
FADE = 360  # samples: 15 ms, so that a stop does not click

MURMUR_SHARE, OTHER_SHARE = 0.12, 0.08
# Of answers longer than that many seconds; who listens to a long one interrupts more often.
INTERRUPT_SHARES, MURMUR_OVER_ANSWER_SHARE = {0.8: 0.25, 3.0: 0.5}, 0.12
QUIET_SESSION_SHARE, SAME_VOICE_SHARE = 0.06, 0.85


@dataclass
class Session:
    """`user`: what the user says; `own`: Moshi's answers; `words`: (frame of onset, word) of them; `heard`: (frame, word) of
    the user's questions, one frame after the word's end; `active`: [F] booleans, frames near Moshi's speech.
    """

    user: Scene
    active: np.ndarray
    own: list[Placed] = field(default_factory=list)
    words: list[tuple[int, str]] = field(default_factory=list)
    heard: list[tuple[int, str]] = field(default_factory=list)


class Composer:
    """Makes random sessions of `users` with Moshi's `own` takes; the same seed gives the same sessions."""

    def __init__(self, users: Takes, own: Takes, seed: str):
        self.rng, self.users = random.Random(seed), users
        self.answers = {take.text: take for take in own.all}

    def session(self, frames: int) -> Session:
        """One conversation of `frames` frames."""
        made, rng = Session(Scene(frames * FRAME_SIZE), np.zeros(frames, bool)), self.rng
        if rng.random() >= QUIET_SESSION_SHARE:
            self._talk(made)
        elif rng.random() < 0.5:
            speaker, at = rng.choice(self.users.speakers), samples(rng.uniform(0.2, 3))
            while at < made.user.length:
                made.user.add(self._take(speaker, MURMUR), at)
                at += samples(rng.uniform(1, 5))
        return made

    def _take(self, speaker: int, role: str) -> Take:
        return self.rng.choice(self.users.of[speaker, role])

    def _talk(self, made: Session) -> None:
        rng, length = self.rng, made.user.length
        speaker = rng.choice(self.users.speakers)
        at = samples(rng.choice([rng.uniform(0.1, 1), rng.uniform(1, 3), rng.uniform(1, 8)]))
        answer: Placed | None = None  # under way, said when it is known how it ends
        interrupting = False
        while True:
            if rng.random() >= SAME_VOICE_SHARE:
                speaker = rng.choice(self.users.speakers)
            choice = ASK if interrupting else rng.choices((MURMUR, OTHER, ASK), (MURMUR_SHARE, OTHER_SHARE, 1))[0]
            take = self._take(speaker, choice)
            end = at + take.length
            reply = self.answers.get(take.answer)
            begin = next_frame(end + samples(rng.uniform(*ANSWER_AFTER_S))) * FRAME_SIZE
            # A question whose answer would not fit any more is not asked.
            if (begin + reply.length + FRAME_SIZE if reply else end) >= length:
                break
            said = made.user.add(take, at)
            if answer:
                if interrupting:
                    after = LATE_STOP_S if rng.random() < LATE_STOP_SHARE else STOP_AFTER_S
                    stop = next_frame(at + samples(rng.uniform(*after))) * FRAME_SIZE
                    answer.stop = min(answer.stop, stop)
                self._say(made, answer)
                answer = None
            interrupting = False
            at = end + samples(self._pause())
            if not reply:
                continue
            ends = [onset for _, onset in said.words[1:]] + [end]
            made.heard += [(next_frame(e) + 1, word) for (word, _), e in zip(said.words, ends, strict=True)]
            answer = Placed(reply, begin, begin + reply.length)
            at = answer.stop + samples(self._pause())
            spoken = reply.length / SAMPLE_RATE
            shares = [share for seconds, share in INTERRUPT_SHARES.items() if spoken > seconds]
            if shares and rng.random() < shares[-1]:
                at, interrupting = begin + samples(rng.uniform(0.0, spoken - 0.4)), True
            elif shares and rng.random() < MURMUR_OVER_ANSWER_SHARE:
                made.user.add(self._take(speaker, MURMUR), begin + samples(rng.uniform(0.1, spoken - 0.3)))
        if answer:
            self._say(made, answer)

    def _pause(self) -> float:
        """Seconds before the user speaks again."""
        return self.rng.uniform(2.5, 6) if self.rng.random() < 0.15 else self.rng.uniform(0.3, 2.5)

    def _say(self, made: Session, answer: Placed) -> None:
        """Add an answer, possibly cut short, to the session."""
        made.own.append(answer)
        made.words += [(onset // FRAME_SIZE, word) for word, onset in answer.words]
        made.active[max(0, answer.at // FRAME_SIZE - 2) : next_frame(answer.stop) + 2] = True
