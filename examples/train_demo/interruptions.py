"""How the dialogue model stops when it is interrupted: a question with a long answer, and another one into that answer."""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moshi_mlx import checkpoint
from moshi_mlx.session import Session

from . import domain
from .augment import channel_of_test
from .measure import BATCH, talk
from .rates import FRAME_SIZE, SAMPLE_RATE
from .recogniser import speech_spans
from .speakers import HELD_OUT, Synthesisers, sample_speaker

FRAMES = 200
LONG = (*domain.ABOUT, *domain.JOKES, "count to nine", "count to ten")
# After the end of the first question: the answer has begun, and is far from over.
AFTER_S = (0.8, 1.6)
STOP_S = 0.5


@dataclass
class Interruption:
    """`begun`: second at which the user interrupts; `ended`: at which the second question ends."""

    wav: np.ndarray
    begun: float
    ended: float
    answer: str


def make_interruptions(count: int, seed: int, side: str = HELD_OUT) -> list[Interruption]:
    rng, np_rng, synthesisers = random.Random(seed), np.random.default_rng(seed), Synthesisers()
    second = [e for kind in ("sum", "name", "repeat", "next") for e in domain.exchanges(kind)]
    made = []
    for _ in range(count):
        speaker, exchange = sample_speaker(rng, side), rng.choice(second)
        wav = np.zeros(FRAMES * FRAME_SIZE, np.float32)
        first, then = (
            channel_of_test(np_rng, synthesisers.say(text, speaker).wav) for text in (rng.choice(LONG), exchange.prompt)
        )
        start = int(rng.uniform(0.3, 1.0) * SAMPLE_RATE)
        begun = start + len(first) + int(rng.uniform(*AFTER_S) * SAMPLE_RATE)
        wav[start : start + len(first)] = first
        wav[begun : begun + len(then)] += then
        made.append(Interruption(wav, begun / SAMPLE_RATE, (begun + len(then)) / SAMPLE_RATE, exchange.answer))
    return made


def interruption_report(model: str | Path, cases: list[Interruption]) -> dict:
    """Shares in which Moshi was talking, stopped in time, and answered the second question."""
    session = Session(checkpoint.load(model, batch=BATCH), batch=BATCH)
    talked, stopped, answered, times = 0, 0, 0, []
    for i in range(0, len(cases), BATCH):
        part = cases[i : i + BATCH]
        silent = [np.zeros_like(part[0].wav)] * (BATCH - len(part))
        replies = talk(session, np.stack([c.wav for c in part] + silent))
        for case, (sound, words) in zip(part, replies, strict=False):
            spans = speech_spans(sound, SAMPLE_RATE, join_s=0.15)
            if not any(a < case.begun < b for a, b in spans):
                continue
            talked += 1
            until = max(b for a, b in spans if a < case.begun < b)
            times.append(until - case.begun)
            quiet = not any(a < case.ended and b > case.begun + STOP_S for a, b in spans)
            stopped += quiet
            answered += "".join(piece for _, piece in words).strip().endswith(case.answer)
    return dict(
        cases=len(cases), talking=talked, stopped_in_time=stopped / max(1, talked), answered=answered / max(1, talked),
        stop_s=[float(np.percentile(times, p)) for p in (5, 50, 95)] if times else [],
    )  # fmt: skip
