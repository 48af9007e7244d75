"""What a trained model is asked, on prompts, voices and sums kept out of training, and how its replies are counted."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import domain
from .augment import channel_of_test, coloured_noise
from .metrics import wilson_interval
from .rates import FRAME_SIZE, SAMPLE_RATE
from .recogniser import Recogniser, heard_speech, speech_spans
from .speakers import HELD_OUT, Synthesisers, sample_speaker

TEST_FRAMES = 125
DELAY_RANGE_S = (0.16, 0.6)


@dataclass
class Trial:
    """One test session and what is expected of it."""

    kind: str  # of the exchange; "sum" pairs are all held out, "sum-heard" are not
    prompt: str
    answer: str
    end_s: float  # when the prompt ends
    wav: np.ndarray  # [1920 TEST_FRAMES], the user's microphone


@dataclass
class Reply:
    """Text and sound [T] of a model, both on the clock of the trial's sound."""

    text: str
    sound: np.ndarray


TRIAL_KINDS = (*domain.KINDS, "sum-heard", "hesitant", "silence", "backchannel")


def make_trials(count: int, seed: int, side: str = HELD_OUT, kinds: Sequence[str] = TRIAL_KINDS) -> list[Trial]:
    """`count` trials of each of `kinds`, all by speakers of one side that is not heard in training."""
    rng, np_rng, synthesisers = random.Random(seed), np.random.default_rng(seed), Synthesisers()
    trials = []
    for kind in kinds:
        for _ in range(count):
            prompt, spelling, answer = _pick(kind, rng)
            wav = np.zeros(TEST_FRAMES * FRAME_SIZE, np.float32)
            start = int(rng.uniform(0.3, 2.0) * SAMPLE_RATE)
            end = start
            if prompt:
                speech = channel_of_test(np_rng, synthesisers.say(prompt, sample_speaker(rng, side), spelling).wav)
                end = start + len(speech)
                wav[start:end] = speech
            if rng.random() < 0.4:
                wav += coloured_noise(np_rng, len(wav), rng.uniform(-75, -45))
            trials.append(Trial(kind, prompt, answer, end / SAMPLE_RATE, wav.clip(-1, 1)))
    return trials


def _pick(kind: str, rng: random.Random) -> tuple[str, str | None, str]:
    """(prompt, spelling for espeak-ng, answer) of a trial."""
    if kind == "silence":
        return "", None, ""
    if kind == "backchannel":
        return *rng.choice(list(domain.BACKCHANNELS.items())), ""
    asked = {"sum-heard": "sum", "hesitant": rng.choice(("sum", "sum3", "count", "next"))}.get(kind, kind)
    exchange = rng.choice(domain.exchanges(asked, asked == "repeat" or kind == "sum"))
    prompt = domain.hesitant(exchange.prompt, rng) if kind == "hesitant" else exchange.prompt
    return prompt, None, exchange.answer


def score(trials: list[Trial], replies: list[Reply]) -> dict:
    """Right text, right sound, silence kept and answer delays, by kind; and what went wrong."""
    recogniser = Recogniser("answer")
    by_kind: dict[str, dict] = {}
    failures = []
    for trial, reply in zip(trials, replies, strict=True):
        spans = speech_spans(reply.sound, SAMPLE_RATE)
        heard = heard_speech(recogniser, reply.sound, SAMPLE_RATE)
        text_right = reply.text == trial.answer
        sound_right = heard == reply.text if trial.answer else not spans
        entry = by_kind.setdefault(trial.kind, dict(asks=bool(trial.answer), text=[], sound=[], delay=[]))
        entry["text"].append(text_right)
        entry["sound"].append(sound_right)
        if trial.answer and spans:
            entry["delay"].append(spans[0][0] - trial.end_s)
        if not (text_right and sound_right):
            failures.append(dict(kind=trial.kind, prompt=trial.prompt, text=reply.text, heard=heard))
    kinds = {kind: _shares(entry) for kind, entry in by_kind.items()}
    return dict(kinds=kinds, all=_all(by_kind), failures=failures)


def _shares(entry: dict) -> dict:
    hits, count = sum(entry["text"]), len(entry["text"])
    shares = dict(
        count=count, text=hits / count, text_95=wilson_interval(hits, count), sound=float(np.mean(entry["sound"]))
    )
    return shares | (_delays(np.array(entry["delay"])) if entry["delay"] else {})


def _all(by_kind: dict[str, dict]) -> dict:
    """Every kind that asks for an answer, taken together; nothing where none does."""
    asking = [entry for entry in by_kind.values() if entry["asks"]]
    if not asking:
        return {}
    names = ("text", "sound", "delay")
    return _shares({name: list(itertools.chain(*(entry[name] for entry in asking))) for name in names})


def _delays(delays: np.ndarray) -> dict:
    low, high = DELAY_RANGE_S
    return dict(
        delay_s=[float(np.percentile(delays, p)) for p in (5, 50, 95)],
        delay_in_range=float(((delays >= low) & (delays <= high)).mean()),
    )
