"""The tokenizer of a source as a sentencepiece model, and back as the `tokenizer.json` of transformers.

Either is made from the other's pieces and then compared with it on real text; one that would cut text differently is not made.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor

from moshi_mlx.checkpoint_config import CheckpointConfig, read_json
from moshi_mlx.errors import CheckpointError
from moshi_mlx.places import Place
from moshi_mlx.presets import TOKENIZER_NAME

from .place import CheckedFolder, override, published

if TYPE_CHECKING:
    from .source import Request

_JSON = "tokenizer.json"
_SPACE = "\u2581"
# Texts on which two tokenizers are compared: languages of the family, digits, spaces, signs without a piece of their own.
SAMPLES = (
    "Hello, how are you today?", "I'm fine; thanks -- 3.14 times!", " leading and  double   spaces ", "Ça va très bien, merci.",
    "Où êtes-vous né ? Übergröße, señor, coração, žluťoučký kůň", "12345 67,890 e-mail@example.org #tag", "日本語 русский ελληνικά",
    "naïve café\u0301 ½ ﬁ", "a\tb", "🙂 ok", "x", " ", "",
)  # fmt: skip


@dataclass
class Tokenizer:
    """A sentencepiece model: its file name and its bytes."""

    name: str
    content: bytes

    def processor(self) -> SentencePieceProcessor:
        processor = SentencePieceProcessor()
        processor.LoadFromSerializedProto(self.content)
        return processor


def find_tokenizer(place: Place, data: dict[str, Any], request: Request, config: CheckpointConfig) -> Tokenizer | None:
    """The tokenizer given by hand, by the name in the configuration, by its usual name, or the only one in a folder."""
    path = _path(place, data, request)
    if path is None:
        return None
    tokenizer = _read(path)
    size, expected = tokenizer.processor().vocab_size(), config.lm.text_card
    if size != expected:
        raise CheckpointError(
            f"the tokenizer {path} has {size} pieces, the model's 'text_card' is {expected}: they do not belong together."
        )
    return tokenizer


def _path(place: Place, data: dict[str, Any], request: Request) -> Path | None:
    if request.tokenizer is not None:
        return override(request.tokenizer)
    named = data.get("tokenizer_name")
    if isinstance(named, str) and (path := place.named(named, optional=True)) is not None:
        return path
    if (path := place.find(TOKENIZER_NAME, optional=True)) is not None:
        return path
    if isinstance(place, CheckedFolder):
        models = sorted(place.path.glob("*.model"))
        if len(models) == 1:
            return place.find(models[0].name)
    known = published(place)
    names = [*([known.tokenizer] if known else []), "tokenizer.model", _JSON]
    return next((path for name in names if (path := place.find(name, optional=True)) is not None), None)


def _read(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        return Tokenizer("tokenizer.model", from_json(path))
    content = path.read_bytes()
    try:
        SentencePieceProcessor().LoadFromSerializedProto(content)
    except RuntimeError:
        raise CheckpointError(f"{path} is not a sentencepiece model.") from None
    return Tokenizer(path.name, content)


# ----------------------------------------------------------------------------------------------------------------
# tokenizer.json -> sentencepiece
# ----------------------------------------------------------------------------------------------------------------


def from_json(path: Path) -> bytes:
    """A sentencepiece model that cuts text as a `tokenizer.json` does. Raises `CheckpointError` where there is none."""
    data = read_json(path)
    try:
        pieces, is_bpe, unknown = _pieces(data["model"])
        added = {int(t["id"]): bool(t.get("special", False)) for t in data.get("added_tokens") or []}
        charsmap = _charsmap(data.get("normalizer"))
    except (KeyError, TypeError, ValueError, AttributeError, binascii.Error):
        raise CheckpointError(
            f"{path} is not a tokenizer of a sentencepiece model; give one with --tokenizer."
        ) from None
    expected = _encode_json(path)
    strips = "Strip" in json.dumps(data.get("normalizer"))
    best, most = b"", -1
    for collapse, prefix in ((strips, True), (not strips, True), (strips, False), (not strips, False)):
        content = _model_proto(pieces, is_bpe, unknown, added, charsmap, (collapse, prefix))
        found = _encode(Tokenizer("", content).processor())
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
            f"{path} cuts text in a way that no sentencepiece model made from it does; give the model with --tokenizer."
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
    from sentencepiece import sentencepiece_model_pb2 as pb  # type: ignore[attr-defined]

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


def _encode(processor: SentencePieceProcessor) -> list[list[int]]:
    return [list(processor.encode(text)) for text in SAMPLES]


def _encode_json(path: Path) -> list[list[int]] | None:
    """What the `tokenizers` package makes of the samples; None where it is not installed."""
    try:
        from tokenizers import Tokenizer as Fast
    except ImportError:
        return None
    try:
        fast = Fast.from_file(str(path))
    except Exception as e:  # the package raises bare Exception
        raise CheckpointError(f"{path} is not a tokenizer: {e}.") from None
    return [fast.encode(text, add_special_tokens=False).ids for text in SAMPLES]


# ----------------------------------------------------------------------------------------------------------------
# sentencepiece -> tokenizer.json
# ----------------------------------------------------------------------------------------------------------------


def to_json(tokenizer: Tokenizer, path: Path) -> bool:
    """Write the `tokenizer.json` of a sentencepiece model. False where it would cut text differently, and nothing is left."""
    from sentencepiece import sentencepiece_model_pb2 as pb  # type: ignore[attr-defined]

    proto = pb.ModelProto()
    proto.ParseFromString(tokenizer.content)
    kinds = pb.ModelProto.SentencePiece
    special = [
        {"id": i, "content": p.piece, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": p.type != kinds.USER_DEFINED}
        for i, p in enumerate(proto.pieces) if p.type in (kinds.CONTROL, kinds.USER_DEFINED)
    ]  # fmt: skip
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": _normalizer(proto.normalizer_spec),
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": _json_model(proto, pb),
    }
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    if _encode_json(path) in (None, _encode(tokenizer.processor())):
        return True
    path.unlink()
    return False


def _normalizer(spec: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        encoded = base64.b64encode(spec.precompiled_charsmap).decode("ascii")
        parts.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if spec.remove_extra_whitespaces:
        parts.append({"type": "Strip", "strip_left": True, "strip_right": True})
        parts.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    # Also in front of a space, which a metaspace pre-tokenizer would leave as it is.
    if spec.add_dummy_prefix:
        parts.append({"type": "Prepend", "prepend": " "})
    parts.append({"type": "Replace", "pattern": {"String": " "}, "content": _SPACE})
    return {"type": "Sequence", "normalizers": parts}


def _json_model(proto: Any, pb: Any) -> dict[str, Any]:
    pieces, trainer = proto.pieces, proto.trainer_spec
    unknown = next(i for i, p in enumerate(pieces) if p.type == pb.ModelProto.SentencePiece.UNKNOWN)
    if trainer.model_type == pb.TrainerSpec.UNIGRAM:
        vocabulary = [[p.piece, p.score] for p in pieces]
        return {"type": "Unigram", "unk_id": unknown, "vocab": vocabulary, "byte_fallback": trainer.byte_fallback}
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": pieces[unknown].piece,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": trainer.byte_fallback,
        "ignore_merges": False,
        "vocab": {p.piece: i for i, p in enumerate(pieces)},
        "merges": list(_merges({p.piece: (i, p.score) for i, p in enumerate(pieces)})),
    }


def _merges(vocabulary: dict[str, tuple[int, float]]) -> Iterable[list[str]]:
    """Every pair of pieces that makes a piece, the best scored first."""
    found = []
    for piece, (_, score) in vocabulary.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-score, vocabulary[left][0], vocabulary[right][0], left, right))
    return ([left, right] for *_, left, right in sorted(found))
