"""Which words of Moshi's answers are said elsewhere too, in as many frames.

Its answers are recordings, each the same whenever it is heard. A model that hears itself soon knows by the sound of "three plus" how
the answer ends, and stops listening and adding; so in training it hears some other recording of each word it says.
"""

from typing import NamedTuple

import numpy as np

# A word's recordings are exchanged where the next word begins at most this many frames later.
LONGEST_WORD = 10


class SameWords(NamedTuple):
    """Words of a text channel [N, F], in groups of one word and one length. Places count through all sessions: session * F + frame.

    group int32 [N, F], -1 where no such word is said, and frames since the word's beginning int16 [N, F]; the words of group g are
    `places[first[g] : first[g] + count[g]]`.
    """

    group: np.ndarray
    since: np.ndarray
    places: np.ndarray
    first: np.ndarray
    count: np.ndarray


def same_words(text: np.ndarray, pad: int) -> SameWords:
    """Of tokens [N, F], those above `pad` being words, every word that is followed by another."""
    frames, flat = text.shape[1], text.ravel()
    at = np.flatnonzero(flat > pad)
    length = np.diff(at, append=flat.size + LONGEST_WORD + 1)
    followed = (length <= LONGEST_WORD) & (at // frames == (at + length) // frames)
    at, length = at[followed], length[followed]
    kinds = flat[at].astype(np.int64) * (LONGEST_WORD + 1) + length
    _, of, count = np.unique(kinds, return_inverse=True, return_counts=True)
    group, since = np.full(flat.size, -1, np.int32), np.zeros(flat.size, np.int16)
    for i in range(LONGEST_WORD):
        reaches = at[length > i] + i
        group[reaches], since[reaches] = of[length > i], i
    places = at[np.argsort(of, kind="stable")]
    return SameWords(group.reshape(text.shape), since.reshape(text.shape), places, count.cumsum() - count, count)
