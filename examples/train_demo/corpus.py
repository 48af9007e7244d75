"""Audio for the codec: hours of many voices, with what is being said 25 times a second."""

import itertools
import json
import random
from pathlib import Path

import numpy as np

from . import domain
from .augment import at_level, coloured_noise, user_channel
from .espeak import Espeak, Utterance
from .progress import Progress
from .rates import SAMPLE_RATE
from .voices import MOSHI_VOICE, sample_voice

STEP = 960  # samples per latent step of 40 ms, the grid of the phoneme labels
MOSHI_LEVEL_DB = -20.0
# With no look-ahead a step cannot know a sound that has just begun, so labels come later.
LABEL_DELAY = 480
OWN_SHARE, DOMAIN_SHARE, NOISY_SHARE, SILENCE_SHARE = 0.25, 0.5, 0.35, 0.04


class PhonemeTable:
    """Names of phonemes -> small integers, in order of appearance; 0 is silence."""

    def __init__(self, names: list[str] | None = None):
        self.names = names or ["_"]

    def __getitem__(self, name: str) -> int:
        name = "_" if name.startswith("_") else name
        if name not in self.names:
            self.names.append(name)
        return self.names.index(name)


def phoneme_labels(utterance: Utterance, table: PhonemeTable, lead: int, total: int) -> np.ndarray:
    """uint8 [total // STEP]: the sound at each step's middle, `LABEL_DELAY` earlier."""
    labels = np.zeros(total // STEP, np.uint8)
    onsets = [(lead + at, table[name]) for name, at in utterance.phonemes]
    onsets.append((lead + len(utterance.wav), 0))
    for (start, label), (stop, _) in itertools.pairwise(onsets):
        first, last = ((t + LABEL_DELAY - STEP // 2 + STEP - 1) // STEP for t in (start, stop))
        labels[max(0, first) : max(0, last)] = label
    return labels


def spoken_texts(seed: int, held_out: bool = False):
    """An endless mixture of domain sentences and general ones."""
    rng = random.Random(seed)
    general = domain.general_sentences(seed, held_out)
    closed = [t for t in domain.prompts() + domain.answers() if domain.is_held_out(t) == held_out]
    while True:
        yield rng.choice(closed) if rng.random() < DOMAIN_SHARE else next(general)


def build_corpus(folder: Path, hours: float, seed: int) -> None:
    """Write `audio.npy` int16 [T], `labels.npy` uint8 [T / 960] and `phonemes.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, np_rng = random.Random(seed), np.random.default_rng(seed)
    espeak, table, texts = Espeak(), PhonemeTable(), spoken_texts(seed)
    total = int(hours * 3600 * SAMPLE_RATE) // STEP * STEP
    audio = np.lib.format.open_memmap(folder / "audio.npy.part", "w+", np.int16, (total,))
    labels = np.zeros(total // STEP, np.uint8)
    at = 0
    with Progress("codec corpus", total / SAMPLE_RATE, "s") as progress:
        while at < total:
            wav, phonemes = _clip(rng, np_rng, espeak, table, next(texts))
            n = min(len(wav), total - at)
            audio[at : at + n] = (wav[:n] * 32767).astype(np.int16)
            labels[at // STEP : (at + n) // STEP] = phonemes[: n // STEP]
            at += n
            progress.advance(n / SAMPLE_RATE)
    audio.flush()
    np.save(folder / "labels.npy", labels)
    (folder / "phonemes.json").write_text(json.dumps(table.names))
    (folder / "audio.npy.part").rename(folder / "audio.npy")


def _clip(rng, np_rng, espeak: Espeak, table: PhonemeTable, text: str):
    """One utterance with some silence around it, or a stretch of silence or noise."""
    if rng.random() < SILENCE_SHARE:
        total = rng.randint(25, 100) * STEP
        wav = np.zeros(total, np.float32)
        if rng.random() < 0.6:
            wav = coloured_noise(np_rng, total, rng.uniform(-75, -35))
        return wav, np.zeros(total // STEP, np.uint8)
    own = rng.random() < OWN_SHARE
    utterance = espeak.say(text, MOSHI_VOICE if own else sample_voice(rng))
    speech = at_level(utterance.wav, MOSHI_LEVEL_DB)
    noise_db = None
    if not own:
        speech = user_channel(np_rng, utterance.wav)
        if rng.random() < NOISY_SHARE:
            noise_db = rng.uniform(-75, -38)
    # Moshi's own sentences start on a frame, as they do in the dialogues.
    lead = rng.randint(1, 10) * 2 * STEP if own else rng.randint(0, 16 * STEP)
    total = -(-(lead + len(speech) + rng.randint(0, 12 * STEP)) // (2 * STEP)) * 2 * STEP
    wav = np.zeros(total, np.float32)
    wav[lead : lead + len(speech)] = speech
    if noise_db is not None:
        wav += coloured_noise(np_rng, total, noise_db)
    return wav.clip(-1, 1), phoneme_labels(utterance, table, lead, total)


def held_out_utterances(count: int, seed: int = 7) -> list[tuple[str, np.ndarray]]:
    """(text, wav [T]) of held-out sentences by held-out voices, clean, for the codec's test."""
    rng, espeak = random.Random(seed), Espeak()
    texts = spoken_texts(seed, held_out=True)
    found = []
    for text in texts:
        if len(text.split()) >= 4:  # STOI needs more than a third of a second of speech
            wav = espeak.say(text, sample_voice(rng, held_out=True)).wav
            found.append((text, at_level(wav, -22.0)))
        if len(found) == count:
            return found
    return found
