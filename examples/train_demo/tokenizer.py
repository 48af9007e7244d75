"""The sentencepiece tokenizers, and how words become a text channel of one token a frame."""

import io
import itertools
from pathlib import Path

import numpy as np
import sentencepiece as spm

from . import domain
from .lm import END_OF_PAD, PAD
from .sentences import words

DIALOGUE_VOCABULARY, READING_VOCABULARY = 288, 2048
LETTERS = "abcdefghijklmnopqrstuvwxyz"
PUNCTUATION = ".,?!'-"


def train_dialogue_tokenizer(path: Path) -> None:
    """A unigram model with one piece for every word of the dialogues."""
    spoken = sorted({w for a in domain.answers() for w in a.split()})
    heard = sorted({w for p in domain.prompts() for w in p.split()})
    general = itertools.islice(domain.general_sentences(0, held_out=False), 300)
    _train(path, [*spoken * 40, *heard * 20, *general], sorted({*spoken, *heard}), DIALOGUE_VOCABULARY)


def train_reading_tokenizer(path: Path) -> None:
    """One piece for every word of the list, letters for all others, no capitals: of speech-to-text and text-to-speech."""
    _train(path, words(), words(), READING_VOCABULARY, f"0123456789{PUNCTUATION}", "nmt_nfkc_cf")


def _train(path: Path, lines: list[str], whole: list[str], size: int, more: str = "", rule: str = "identity") -> None:
    """Ids 0..3 are unknown, begin, end, padding, as in every tokenizer of the family."""
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([*lines, *LETTERS]), model_writer=model, vocab_size=size,
        model_type="unigram", user_defined_symbols=["\u2581" + word for word in whole],
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, character_coverage=1.0,
        num_threads=1, minloglevel=2, normalization_rule_name=rule, hard_vocab_limit=False,
        required_chars=LETTERS + more,
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())


class Tokenizer:
    def __init__(self, path: Path):
        self._model = spm.SentencePieceProcessor(model_file=str(path))

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids) -> str:
        """Text of a run of channel tokens; the special ids say nothing."""
        return self._model.decode([int(i) for i in ids if i > PAD])

    def piece(self, piece: str) -> int:
        return self._model.piece_to_id(piece)

    def spell(self, word: str) -> list[int]:
        """The word as one that is not in the list would be written: the longest word that it begins with, then letters."""
        known = [n for n in range(1, len(word)) if not self._model.is_unknown(self.piece("\u2581" + word[:n]))]
        n = known[-1] if known else 0
        return [self.piece("\u2581" + word[:n]), *(self.piece(letter) for letter in word[n:])]

    def __len__(self) -> int:
        return self._model.vocab_size()


def text_channel(
    words: list[tuple[int, str]], frames: int, tokenizer: Tokenizer, boundaries: bool = False
) -> np.ndarray:
    """Tokens [F] for (frame, word) in time order.

    A word's tokens start on its frame, or right after the previous word's if that is still being spelled; the padding
    column before a word becomes END_OF_PAD. With `boundaries` every word has such a column, even if it has to come later.
    """
    tokens = np.full(frames, PAD, np.int16)
    free = 0
    for frame, word in words:
        at = max(frame, free + boundaries)
        pieces = tokenizer.encode(word)[: max(0, frames - at)]
        tokens[at : at + len(pieces)] = pieces
        if 0 < at <= frames and tokens[at - 1] == PAD:
            tokens[at - 1] = END_OF_PAD
        free = at + len(pieces)
    return tokens
