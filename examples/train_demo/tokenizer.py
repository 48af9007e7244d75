"""The sentencepiece tokenizer, and how words become a text channel of one token a frame."""

import io
import itertools
from pathlib import Path

import numpy as np
import sentencepiece as spm

from . import domain
from .lm import END_OF_PAD, PAD

VOCABULARY = 256


def train_tokenizer(path: Path) -> None:
    """A unigram model with one piece for every word of the domain.

    Ids 0..3 are unknown, begin, end, padding, as in every tokenizer of the family.
    """
    spoken = sorted({w for a in domain.answers() for w in a.split()})
    heard = sorted({w for p in domain.prompts() for w in p.split()})
    general = itertools.islice(domain.general_sentences(0, held_out=False), 300)
    lines = spoken * 40 + heard * 20 + list(general) + list("abcdefghijklmnopqrstuvwxyz")
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=VOCABULARY,
        model_type="unigram", user_defined_symbols=["\u2581" + word for word in sorted({*spoken, *heard})],
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, character_coverage=1.0,
        num_threads=1, minloglevel=2, normalization_rule_name="identity",
    )  # fmt: skip
    path.write_bytes(model.getvalue())


class Tokenizer:
    def __init__(self, path: Path):
        self._model = spm.SentencePieceProcessor(model_file=str(path))

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids) -> str:
        """Text of a run of channel tokens; the special ids say nothing."""
        return self._model.decode([int(i) for i in ids if i > PAD])

    def __len__(self) -> int:
        return self._model.vocab_size()


def text_channel(words: list[tuple[int, str]], frames: int, tokenizer: Tokenizer) -> np.ndarray:
    """Tokens [F] for (frame, word) in time order.

    A word's tokens start on its frame, or right after the previous word's if that is still
    being spelled; the padding column before a word becomes END_OF_PAD.
    """
    tokens = np.full(frames, PAD, np.int16)
    free = 0
    for frame, word in words:
        at = max(frame, free)
        pieces = tokenizer.encode(word)[: max(0, frames - at)]
        tokens[at : at + len(pieces)] = pieces
        if at > 0 and tokens[at - 1] == PAD:
            tokens[at - 1] = END_OF_PAD
        free = at + len(pieces)
    return tokens
