"""What the trained model can do, on prompts, voices and sums kept out of training."""

import random
from dataclasses import asdict, dataclass

import numpy as np
import torch

from . import domain
from .augment import at_level, coloured_noise, user_channel
from .codec import FRAME_SIZE, SAMPLE_RATE, Codec
from .corpus import held_out_utterances
from .espeak import Espeak
from .generate import Sampling, converse
from .lm import Lm
from .metrics import Recogniser, intelligibility, speech_spans, wilson_interval, word_accuracy
from .tokenizer import Tokenizer
from .voices import sample_voice

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


def make_trials(count: int, seed: int) -> list[Trial]:
    """`count` trials of every kind, all by held-out voices."""
    rng, np_rng, espeak = random.Random(seed), np.random.default_rng(seed), Espeak()
    trials = []
    for kind in (*domain.KINDS, "sum-heard", "silence", "backchannel"):
        for _ in range(count):
            prompt, spelling, answer = _pick(kind, rng)
            wav = np.zeros(TEST_FRAMES * FRAME_SIZE, np.float32)
            start = int(rng.uniform(0.3, 2.0) * SAMPLE_RATE)
            end = start
            if prompt:
                voice = sample_voice(rng, held_out=True)
                speech = espeak.say(prompt, voice, spelling).wav
                speech = user_channel(np_rng, speech) if rng.random() < 0.3 else at_level(speech, rng.uniform(-30, -18))
                end = start + len(speech)
                wav[start:end] = speech
            if rng.random() < 0.4:
                wav += coloured_noise(np_rng, len(wav), rng.uniform(-75, -45))
            trials.append(Trial(kind, prompt, answer, end / SAMPLE_RATE, wav.clip(-1, 1)))
    return trials


def _pick(kind: str, rng: random.Random) -> tuple[str, str | None, str]:
    """(prompt, spelling for the synthesiser, answer) of a trial."""
    if kind == "silence":
        return "", None, ""
    if kind == "backchannel":
        return *rng.choice(list(domain.BACKCHANNELS.items())), ""
    held_out = kind in ("sum", "repeat")
    exchange = rng.choice(domain.exchanges("sum" if kind == "sum-heard" else kind, held_out))
    return exchange.prompt, None, exchange.answer


@torch.no_grad()
def answer_trials(codec: Codec, lm: Lm, tokenizer: Tokenizer, trials: list[Trial],
                  sampling: Sampling, batch: int = 40) -> list[tuple[str, np.ndarray]]:  # fmt: skip
    """(text, own sound [T]) of every trial."""
    results = []
    for i in range(0, len(trials), batch):
        wav = torch.from_numpy(np.stack([t.wav for t in trials[i : i + batch]]))[:, None]
        codes = torch.cat([codec.encode(part) for part in wav.split(8)])
        text, own = converse(lm, codes, sampling)
        sound = torch.cat([codec.decode(part) for part in own.split(8)])[:, 0].numpy()
        results += [(tokenizer.decode(ids), s) for ids, s in zip(text, sound, strict=True)]
    return results


def text_accuracy(codec: Codec, lm: Lm, tokenizer: Tokenizer, trials: list[Trial]) -> dict:
    """Share of right answers by kind, from the text channel alone (quick, for training logs)."""
    replies = answer_trials(codec, lm, tokenizer, trials, Sampling())
    right: dict[str, list[bool]] = {}
    for trial, (text, _) in zip(trials, replies, strict=True):
        right.setdefault(trial.kind, []).append(text == trial.answer)
    return {f"right_{kind}": float(np.mean(flags)) for kind, flags in right.items()}


def dialogue_report(codec: Codec, lm: Lm, tokenizer: Tokenizer, trials: list[Trial],
                    sampling: Sampling) -> dict:  # fmt: skip
    """Right text, right sound, silence kept and answer delays, by kind."""
    recogniser = Recogniser("answer")
    replies = answer_trials(codec, lm, tokenizer, trials, sampling)
    by_kind: dict[str, dict[str, list]] = {}
    failures = []
    for trial, (text, sound) in zip(trials, replies, strict=True):
        spans = speech_spans(sound, SAMPLE_RATE)
        heard = ""
        if spans:
            margin = 0.1
            first, last = spans[0][0] - margin, spans[-1][1] + margin
            part = sound[max(0, int(first * SAMPLE_RATE)) : int(last * SAMPLE_RATE)]
            heard = recogniser.transcribe(part, SAMPLE_RATE)
        entry = by_kind.setdefault(trial.kind, dict(text=[], sound=[], spoken=[], delay=[]))
        entry["text"].append(text == trial.answer)
        entry["sound"].append(heard == text if trial.answer else not spans)
        if trial.answer and spans:
            entry["delay"].append(spans[0][0] - trial.end_s)
        if text != trial.answer or (trial.answer and heard != text) or (not trial.answer and spans):
            failures.append(dict(kind=trial.kind, prompt=trial.prompt, text=text, heard=heard))
    report = {}
    for kind, entry in by_kind.items():
        hits, count = sum(entry["text"]), len(entry["text"])
        report[kind] = dict(
            count=count, text=hits / count, text_95=wilson_interval(hits, count),
            sound=float(np.mean(entry["sound"])),
        )  # fmt: skip
        if entry["delay"]:
            report[kind].update(_delays(np.array(entry["delay"])))
    return dict(sampling=asdict(sampling), kinds=report, failures=failures)


def _delays(delays: np.ndarray) -> dict:
    low, high = DELAY_RANGE_S
    return dict(
        delay_s=[float(np.percentile(delays, p)) for p in (5, 50, 95)],
        delay_in_range=float(((delays >= low) & (delays <= high)).mean()),
    )


@torch.no_grad()
def codec_report(codec: Codec, count: int = 60) -> dict:
    """STOI and recognised words on held-out sentences and voices, against the original."""
    utterances = held_out_utterances(count)
    recogniser = Recogniser("speech")
    scores, original, decoded = [], [], []
    for text, wav in utterances:
        x = torch.from_numpy(wav)[None, None]
        y = codec.decode(codec.encode(x))[0, 0, : len(wav)].numpy()
        scores.append(intelligibility(wav, y, SAMPLE_RATE))
        original.append((text, recogniser.transcribe(wav, SAMPLE_RATE)))
        decoded.append((text, recogniser.transcribe(y, SAMPLE_RATE)))
    bits = codec.cfg.n_q * np.log2(codec.cfg.bins) * SAMPLE_RATE / FRAME_SIZE
    return dict(
        stoi=float(np.mean(scores)), stoi_5=float(np.percentile(scores, 5)),
        words_original=word_accuracy(original), words_decoded=word_accuracy(decoded),
        bits_per_second=float(bits),
    )  # fmt: skip
