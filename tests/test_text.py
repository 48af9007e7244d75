"""Text that comes token by token: characters are whole, words have times."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from moshi_mlx.text import Detokenizer, WordTimer

TOKENIZER = Path(__file__).parent / "goldens" / "system" / "question_a" / "tokenizer.model"


@pytest.fixture(scope="module")
def tokenizer():
    return SentencePieceProcessor(model_file=str(TOKENIZER))


@pytest.mark.parametrize("text", ["hello there", "déjà vu, où?", "日本語 と emoji 🙂 end", "a\nb"])
def test_pieces_add_up_to_the_text(tokenizer, text):
    detokenizer = Detokenizer(tokenizer)
    parts = [detokenizer.feed(t) for t in tokenizer.encode(text)]
    joined = "".join(parts) + detokenizer.flush()
    assert joined.strip() == tokenizer.decode(tokenizer.encode(text)).strip()
    assert "\ufffd" not in joined
    assert "<0x" not in joined


def test_padding_and_control_tokens_are_silent(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.feed(t) for t in (0, 1, 2, 3, -1, -2, 400, 99999)] == [""] * 8


def test_unfinished_characters_do_not_swallow_what_follows(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    bytes_of_e = [tokenizer.piece_to_id(f"<0x{b:02X}>") for b in "é".encode()]
    word = tokenizer.encode("a")[-1]
    assert detokenizer.feed(bytes_of_e[0]) == ""
    assert detokenizer.feed(word).startswith("\ufffd")
    assert detokenizer.feed(bytes_of_e[0]) == ""
    assert detokenizer.feed(bytes_of_e[1]) == "é"


def test_control_characters_never_reach_a_terminal(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.feed(tokenizer.piece_to_id("<0x1B>")) == ""
    assert detokenizer.feed(tokenizer.piece_to_id("<0x0A>")) == "\n"


def test_words_and_times():
    timer = WordTimer(12.5)
    words = []
    for frame, text in enumerate([" he", "llo", "", "", " wor", "ld,", " a b", ""]):
        words += timer.feed(text, frame)
    words += timer.flush()
    assert [(w.text, w.start, w.end) for w in words] == [
        ("hello", 0.0, 0.16),
        ("world,", 0.32, 0.48),
        ("a", 0.48, 0.56),
        ("b", 0.48, 0.56),
    ]
    assert timer.flush() == []


def test_times_do_not_drift():
    timer = WordTimer(12.5)
    frame = 12 * 3600 * 25 // 2
    timer.feed(" late", frame)
    assert timer.flush()[0].start == 12 * 3600
