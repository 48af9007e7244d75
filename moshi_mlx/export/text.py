"""The pieces of a tokenizer as a table: all that is needed to read text, not to write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..config.parts import LmConfig
from ..text import WORD_MARK

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

NORMAL, CONTROL, BYTE, UNKNOWN = "ncbu"


def table(tokenizer: SentencePieceProcessor, cfg: LmConfig) -> dict[str, Any]:
    """`pieces` by token, `kinds` one letter each; `silent` tokens say nothing."""

    def kind(token: int) -> str:
        if tokenizer.is_control(token):
            return CONTROL
        if tokenizer.is_byte(token):
            return BYTE
        return UNKNOWN if tokenizer.is_unknown(token) else NORMAL

    tokens = range(tokenizer.vocab_size())
    return {
        "pieces": [tokenizer.id_to_piece(t) for t in tokens],
        "kinds": "".join(map(kind, tokens)),
        "silent": sorted({cfg.padding_token, cfg.end_padding_token}),
        "word_mark": WORD_MARK,
    }


class PieceTable:
    """A table as the tokenizer that a `Detokenizer` reads with."""

    def __init__(self, described: dict[str, Any]):
        self._pieces, self._kinds = described["pieces"], described["kinds"]
        self._silent = set(described["silent"])

    def vocab_size(self) -> int:
        return len(self._pieces)

    def id_to_piece(self, token: int) -> str:
        return self._pieces[token]

    def is_control(self, token: int) -> bool:
        return self._kinds[token] == CONTROL or token in self._silent

    def is_byte(self, token: int) -> bool:
        return self._kinds[token] == BYTE
