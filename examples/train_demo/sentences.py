"""Sentences beyond the dialogues: chains of common words, for speech-to-text and text-to-speech.

`words.txt` lists the words, the most common first, and `followers.npy` which words often come after each; `make_words.py`
makes both. A chain hops to any word of the list now and then, so that rare words are heard too.
"""

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from . import domain

WORDS, FOLLOWERS = Path(__file__).parent / "words.txt", Path(__file__).parent / "followers.npy"
LENGTHS = (3, 11)
HOP = 0.3
# The words that speech-to-text is taught beyond those of the dialogues.
COMMON = 450


@cache
def words() -> list[str]:
    return WORDS.read_text().split()


@cache
def heard_words() -> frozenset[str]:
    """What speech-to-text knows: the most common words and all of the dialogues."""
    return frozenset(words()[:COMMON]) | domain.vocabulary()


class Chains:
    """Random chains over `vocabulary` (default: all words)."""

    def __init__(self, vocabulary: frozenset[str] | None = None):
        known = words()
        self.vocabulary = known if vocabulary is None else [w for w in known if w in vocabulary]
        allowed = set(self.vocabulary)
        table = np.load(FOLLOWERS)
        self.followers = {w: [known[i] for i in table[known.index(w)] if known[i] in allowed] for w in self.vocabulary}

    def sentence(self, rng: random.Random) -> str:
        """3 to 11 words."""
        out = [rng.choice(self.vocabulary)]
        for _ in range(rng.randint(*LENGTHS) - 1):
            likely = self.followers[out[-1]]
            hops = not likely or rng.random() < HOP
            out.append(rng.choice(self.vocabulary) if hops else likely[int(len(likely) * rng.random() ** 2)])
        return " ".join(out)

    def stream(self, seed: int, held_out: bool = False) -> Iterator[str]:
        """An endless stream of sentences from one side of the split."""
        rng = random.Random(seed)
        while True:
            text = self.sentence(rng)
            if domain.is_held_out(text) == held_out:
                yield text
