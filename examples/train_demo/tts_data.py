"""Readings: sentences by the voices of text-to-speech, with the two text streams as the package's text machine makes them.

The text leads the sound by `DELAY_STEPS`. A word begins in the step of its onset, but not before the word in front has
been fed and one step has passed (the package's `padding_between`), and not later than `MOST_PADDING` steps after that one
(its `max_padding`): the text of long words runs ahead of their sound.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .codec import Codec
from .encode import encode_scenes
from .exchange import Exchange
from .lm import END_OF_PAD, NOTHING, PAD
from .rates import FRAME_SIZE
from .scene import Scene, samples
from .takes import Take, Takes
from .tokenizer import Tokenizer

DELAY_STEPS, AHEAD, FIRST_STEP = 16, 2, 2
STEPS = 160
SOUND_FRAMES = STEPS - DELAY_STEPS
TAIL_FRAMES = 10  # of silence that is learnt after the last word
MAIN, OTHER = 1, 2
SPELT_SHARE, STOP_SHARE, COMMA_SHARE, TWO_SPEAKERS_SHARE = 0.1, 0.4, 0.03, 0.25
NEW_WORD = END_OF_PAD
MOST_PADDING = 8
EXCHANGED_SHARE = 0.5  # of the words, which the model hears from another recording of the same voice


@dataclass
class Word:
    """What is fed for a word, the frame of its onset in the sound, and what is said by whom."""

    tokens: list[int]
    frame: int
    said: str


@dataclass
class Reading:
    """`speakers`: numbers of the main and the other voice (-1: none); `end`: the frame after the last sound."""

    scene: Scene
    words: list[Word]
    speakers: tuple[int, int]
    end: int


class Reader:
    """Makes random readings; the same seed gives the same ones."""

    def __init__(self, readers: Takes, tokenizer: Tokenizer, seed: str):
        self.readers, self.tokenizer, self.rng = readers, tokenizer, random.Random(seed)

    def reading(self) -> Reading:
        """Sentences one after the other for as long as they fit, or fewer, by one voice or two in turn."""
        rng, scene = self.rng, Scene(SOUND_FRAMES * FRAME_SIZE)
        main = rng.choice(self.readers.speakers)
        others = [s for s in self.readers.speakers if s != main]
        two = bool(others) and rng.random() < TWO_SPEAKERS_SHARE
        other = rng.choice(others) if two else rng.choice((main, -1))
        words: list[Word] = []
        at, announced = FIRST_STEP * FRAME_SIZE, 0
        room = scene.length - TAIL_FRAMES * FRAME_SIZE
        for _ in range(rng.choice((1, 1, 2, 3, 9))):
            speaks_other = two and bool(words) and rng.random() < 0.5
            take = rng.choice(self.readers.of[other if speaks_other else main, "other"])
            if at + take.length > room:
                break
            scene.add(take, at)
            mark = OTHER if speaks_other else MAIN
            words += self._words(take, at, mark if mark != announced else 0)
            announced = mark
            at += take.length + samples(rng.uniform(0.05, 0.4))
        end = max((p.stop for p in scene.placed), default=0)
        return Reading(scene, words, (main, other), -(-end // FRAME_SIZE))

    def _words(self, take: Take, at: int, mark: int) -> list[Word]:
        rng, encode = self.rng, self.tokenizer
        found = []
        for word, onset in take.words:
            spelt = len(word) > 2 and rng.random() < SPELT_SHARE
            tokens = encode.spell(word) if spelt else encode.encode(word)
            if rng.random() < COMMA_SHARE:
                tokens = [*tokens, encode.piece(",")]
            found.append(Word(tokens, (at + onset) // FRAME_SIZE, f"{take.speaker} {word}"))
        if found and rng.random() < STOP_SHARE:
            found[-1].tokens = [*found[-1].tokens, encode.piece(rng.choice("...?!"))]
        if found and mark:
            found[0].tokens = [mark, *found[0].tokens]
        return found


def text_streams(words: list[Word], end: int, card: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens [STEPS] with both streams in one, targets [STEPS]): what the machine feeds, and what the model should sample:
    NEW_WORD or PAD, or -1 where nobody asks. `card` counts the rows of the text embedding; `end` the frames of the sound.
    """
    main, second = np.full(STEPS, PAD, np.int32), np.full(STEPS, -1, np.int32)
    asked = np.full(STEPS, PAD, np.int32)
    free, ahead = FIRST_STEP, []
    asked[:free] = -1
    begins, latest = {}, STEPS
    for i, word in enumerate(words):
        # The machine takes the first word as soon as it may.
        step = max(min(word.frame, latest), free) if i else FIRST_STEP
        begins[step] = i
        free, latest = step + len(word.tokens) + 1, step + MOST_PADDING + 1
        main[step : step + len(word.tokens)] = word.tokens[: max(0, STEPS - step)]
        asked[step + 1 : free] = -1
    last = max(min(end, latest), free)
    begins[last] = len(words)
    for step in range(min(STEPS, last + 1)):
        if step in begins:
            asked[step], second[step] = NEW_WORD, NEW_WORD
            later = words[begins[step] + AHEAD : begins[step] + AHEAD + 1]
            ahead += later[0].tokens if later else []
        elif ahead:
            second[step] = ahead.pop(0)
    asked[last + 1 :] = -1
    return (second + 1) * card + main, asked


def build_readings(path: Path, codec: Codec, tokenizer: Tokenizer, readers: Takes, readings: int, seed: str) -> None:
    """Write codes int16 [N, 8, STEPS] (-1: no sound yet), text int32 and asked int8 [N, STEPS], speakers int8 [N, 2], learnt
    bool [N, STEPS], true where the sound counts, and said int32 [N, STEPS]: at the onset of a word in the sound a number above
    `PAD`, the same for the same word of the same voice.
    """
    reader = Reader(readers, tokenizer, seed)
    made = [r for r in (reader.reading() for _ in range(readings)) if r.words]
    codes = encode_scenes(codec, readers, [r.scene for r in made], "readings", through_channel=False)
    delayed = np.full((*codes.shape[:2], STEPS), NOTHING, np.int16)
    delayed[:, :, DELAY_STEPS:] = codes
    texts, asked = zip(*(text_streams(r.words, r.end, len(tokenizer) + 1) for r in made), strict=True)
    steps = np.arange(STEPS)
    learnt = np.stack([(steps >= DELAY_STEPS) & (steps < DELAY_STEPS + r.end + TAIL_FRAMES) for r in made])
    said, numbers = np.full((len(made), STEPS), PAD, np.int32), {}
    for row, reading in zip(said, made, strict=True):
        for word in reading.words:
            row[DELAY_STEPS + word.frame] = numbers.setdefault(word.said, PAD + 1 + len(numbers))
    part = path.with_suffix(".part.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        part, codes=delayed, text=np.stack(texts).astype(np.int32), asked=np.stack(asked).astype(np.int8),
        speakers=np.array([r.speakers for r in made], np.int8), learnt=learnt, said=said,
    )  # fmt: skip
    part.rename(path)


class Readings:
    """All readings of a file on one device."""

    def __init__(self, path: Path, device: torch.device):
        file = np.load(path)
        self.codes, self.text, self.asked, self.speakers, self.learnt = (
            torch.from_numpy(file[n]).to(device) for n in ("codes", "text", "asked", "speakers", "learnt")
        )
        self.exchange = Exchange(file["said"], PAD, EXCHANGED_SHARE, device)

    def batch(self, count: int) -> tuple[Tensor, ...]:
        """codes [B, 9, T] int64 (text first), the same as the model hears itself, asked [B, T], speakers [B, 2], learnt [B, T]."""
        at = torch.randint(0, len(self.codes), (count,), device=self.codes.device)
        text = self.text[at, None].long()
        session, frame = self.exchange.draw(at)
        heard = self.codes[session, :, frame].transpose(1, 2)
        both, felt = (torch.cat([text, codes.long()], 1) for codes in (self.codes[at], heard))
        return both, felt, self.asked[at].long(), self.speakers[at].long(), self.learnt[at]
