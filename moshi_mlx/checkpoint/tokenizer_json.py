"""The `tokenizer.json` of transformers as a sentencepiece model, which is what every command reads text with.

The model is made from the file's pieces and then compared with it on real text; one that would cut text differently is not made.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.input_files import read_bytes
from ..config.json_text import LARGEST_TOKENIZER, read_json
from ..errors import CheckpointError, first_line, quoted

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

# Texts on which two tokenizers are compared: languages of the family, digits, spaces, signs without a piece of their own.
SAMPLES = (
    "Hello, how are you today?", "I'm fine; thanks -- 3.14 times!", " leading and  double   spaces ", "Ça va très bien, merci.",
    "Où êtes-vous né ? Übergröße, señor, coração, žluťoučký kůň", "12345 67,890 e-mail@example.org #tag", "日本語 русский ελληνικά",
    "naïve café\u0301 ½ ﬁ", "a\tb", "🙂 ok", "x", " ", "",
)  # fmt: skip


def processor_of(content: bytes) -> SentencePieceProcessor:
    """The processor of a sentencepiece model given as its bytes."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(content)
    return processor


def read_tokenizer(path: Path) -> bytes:
    """The bytes of the sentencepiece model at `path`, or of one made from the `tokenizer.json` there. Raises `CheckpointError`."""
    content = from_json(path) if path.suffix == ".json" else read_bytes(path, LARGEST_TOKENIZER)
    try:
        processor = processor_of(content)
    except (RuntimeError, UnicodeDecodeError):
        # The second where sentencepiece's own words quote bytes that are no text.
        raise CheckpointError(f"{path} is not a sentencepiece model.") from None
    try:
        # Every text it can give, one by one: sentencepiece takes any bytes for a piece, and for what stands for an unknown one.
        processor.id_to_piece(list(range(processor.vocab_size())))
        processor.decode([processor.unk_id()])
    except UnicodeDecodeError as e:
        raise CheckpointError(
            f"{path} is damaged: its piece {quoted(e.object[:40])} is not UTF-8. Download it again."
        ) from None
    return content


def check_size(pieces: int, text_card: int, path: Path) -> str | None:
    """What to say of a tokenizer with fewer pieces than the model has text tokens; one with more is refused.

    Models have tokens that no piece stands for where their table was padded; those are never text.
    """
    if pieces > text_card:
        raise CheckpointError(
            f"the tokenizer {path} has {pieces} pieces, the model's 'text_card' is {text_card}: they do not belong together."
        )
    if pieces == text_card:
        return None
    return (
        f"the tokenizer {path.name} has {pieces} pieces, the model {text_card} text tokens; "
        f"the last {text_card - pieces} stand for nothing. If words come out wrong, it is another model's: see --tokenizer."
    )


def from_json(path: Path) -> bytes:
    """A sentencepiece model that cuts text as a `tokenizer.json` does. Raises `CheckpointError` where there is none."""
    data = read_json(path, LARGEST_TOKENIZER, CheckpointError)
    try:
        pieces, is_bpe, unknown = _pieces(data["model"])
        added = {int(t["id"]): bool(t.get("special", False)) for t in data.get("added_tokens") or []}
        charsmap = _charsmap(data.get("normalizer"))
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        raise CheckpointError(
            f"{path} is not a tokenizer of a sentencepiece model; give one with --tokenizer."
        ) from None
    expected = encode_json(path)
    strips = "Strip" in json.dumps(data.get("normalizer"))
    best, most = b"", -1
    for collapse, prefix in ((strips, True), (not strips, True), (strips, False), (not strips, False)):
        content = _model_proto(pieces, is_bpe, unknown, added, charsmap, (collapse, prefix))
        found = encode(processor_of(content))
        if expected is None:
            return content
        # Converters differ in what they make of spaces in a row and at the ends; words have to agree.
        words = all(
            a == b for a, b, text in zip(found, expected, SAMPLES, strict=True) if text == " ".join(text.split())
        )
        same = sum(a == b for a, b in zip(found, expected, strict=True))
        if words and same > most:
            best, most = content, same
    if most < 0:
        raise CheckpointError(
            f"{path} splits text in a way that no sentencepiece model made from it does; give the model with --tokenizer."
        )
    return best


def _pieces(model: dict[str, Any]) -> tuple[list[tuple[str, float]], bool, int]:
    """(piece, score) by id, whether they are merged pair by pair, and the id of the unknown piece."""
    if model["type"] == "Unigram":
        pieces = [(str(p), float(s)) for p, s in model["vocab"]]
        return _with_newline_as_byte(pieces), False, int(model["unk_id"])
    if model["type"] != "BPE" or not model.get("unk_token"):
        raise ValueError
    vocabulary = {str(p): int(i) for p, i in model["vocab"].items()}
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[p] for p in ordered] != list(range(len(ordered))):
        raise ValueError
    # Pieces come in the order in which they are merged: the earlier, the better.
    return _with_newline_as_byte([(p, -float(i)) for i, p in enumerate(ordered)]), True, vocabulary[model["unk_token"]]


def _with_newline_as_byte(pieces: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Helium's file writes the byte 10 among the other bytes as the character it stands for."""
    names = [p for p, _ in pieces]
    if "<0x09>" in names and "<0x0A>" not in names:
        index = names.index("<0x09>") + 1
        if names[index] == "\n":
            pieces = [*pieces[:index], ("<0x0A>", pieces[index][1]), *pieces[index + 1 :]]
    return pieces


def _charsmap(normalizer: dict[str, Any] | None) -> bytes:
    """The table of character replacements that sentencepiece models carry, if there is one."""
    if not normalizer:
        return b""
    if normalizer.get("type") == "Precompiled":
        return base64.b64decode(normalizer["precompiled_charsmap"], validate=True)
    return b"".join(_charsmap(n) for n in normalizer.get("normalizers", []))


def _model_proto(
    pieces: list[tuple[str, float]],
    is_bpe: bool,
    unknown: int,
    added: dict[int, bool],
    charsmap: bytes,
    spaces: tuple[bool, bool],
) -> bytes:
    """`spaces`: whether spaces in a row and at the ends are dropped, and whether one is put in front."""
    from sentencepiece import sentencepiece_model_pb2

    # Its classes are made when it is imported.
    pb: Any = sentencepiece_model_pb2
    model, kinds = pb.ModelProto(), pb.ModelProto.SentencePiece
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = pb.TrainerSpec.BPE if is_bpe else pb.TrainerSpec.UNIGRAM
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = any(p == "<0x00>" for p, _ in pieces)
    trainer.unk_id, trainer.unk_piece = unknown, pieces[unknown][0]
    normalizer.remove_extra_whitespaces, normalizer.add_dummy_prefix = spaces
    normalizer.escape_whitespaces, normalizer.precompiled_charsmap = True, charsmap
    for i, (piece, score) in enumerate(pieces):
        kind = kinds.NORMAL
        if i == unknown:
            kind = kinds.UNKNOWN
        elif len(piece) == 6 and piece.startswith("<0x"):
            kind = kinds.BYTE
        elif i in added:
            kind = kinds.CONTROL if added[i] else kinds.USER_DEFINED
        model.pieces.add(piece=piece, score=score, type=kind)
    return model.SerializeToString()


def encode(processor: SentencePieceProcessor) -> list[list[int]]:
    """What a sentencepiece model makes of the samples."""
    return [list(processor.encode(text)) for text in SAMPLES]


def encode_json(path: Path) -> list[list[int]] | None:
    """What the `tokenizers` package makes of the samples; None where it is not installed."""
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        return None
    try:
        fast = Fast.from_file(str(path))
        return [fast.encode(text, add_special_tokens=False).ids for text in SAMPLES]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the package raises bare Exception, and its panics are none
        raise CheckpointError(f"{path} is not a tokenizer: {first_line(e)}.") from None
