"""Sentences beyond the dialogues: chains of common words, for speech-to-text and text-to-speech.

`words.txt` lists the words, the most common first, and `followers.npy` which words often come after each; `make_words.py`
makes both. A chain hops to some word of the list now and then, so that rare words are heard too.
"""

import itertools
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np

from . import domain

WORDS, FOLLOWERS = Path(__file__).parent / "words.txt", Path(__file__).parent / "followers.npy"
LENGTHS = (3, 11)
HOP = 0.4
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

    def stream(self, seed: int, held_out: bool = False, first: int = 0) -> Iterator[str]:
        """An endless stream of sentences of 3 to 11 words from one side of the split.

        Hops go through a shuffled vocabulary in order, from number `first` on, so that no word is left out.
        """
        rng = random.Random(seed)
        deck = random.Random("deck").sample(self.vocabulary, len(self.vocabulary))
        hops = itertools.cycle(deck[first % len(deck) :] + deck[: first % len(deck)])
        while True:
            text = self._sentence(rng, hops)
            if domain.is_held_out(text) == held_out and not domain.names_held_out_sum(text):
                yield text

    def _sentence(self, rng: random.Random, hops: Iterator[str]) -> str:
        out = [next(hops)]
        for _ in range(rng.randint(*LENGTHS) - 1):
            likely = self.followers[out[-1]]
            hop = not likely or rng.random() < HOP
            out.append(next(hops) if hop else likely[int(len(likely) * rng.random() ** 2)])
        return " ".join(out)
