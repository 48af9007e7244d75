"""The tokenizer of a source as a sentencepiece model, and back as the `tokenizer.json` of transformers.

The way back is made from the model's pieces and compared with it on real text, as `moshi_mlx.tokenizer_json` does the other one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentencepiece import SentencePieceProcessor

from moshi_mlx.checkpoint.files import override
from moshi_mlx.checkpoint.places import Place
from moshi_mlx.checkpoint.tokenizer_json import check_size, encode, encode_json, processor_of, read_tokenizer
from moshi_mlx.checkpoint.transformers_files import TOKENIZER_NAMES
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.config.presets import TOKENIZER_NAME
from moshi_mlx.output import write_text

from .place import CheckedFolder, published

if TYPE_CHECKING:
    from .request import Request

_SPACE = "\u2581"


@dataclass
class Tokenizer:
    """A sentencepiece model: its file name and its bytes."""

    name: str
    content: bytes

    def processor(self) -> SentencePieceProcessor:
        return processor_of(self.content)


def find_tokenizer(
    place: Place, data: dict[str, Any], request: Request, config: CheckpointConfig, notes: list[str]
) -> Tokenizer | None:
    """The tokenizer given by hand, by the name in the configuration, by its usual name, or the only one in a folder.

    `notes` are told what is odd about it.
    """
    path = _path(place, data, request)
    if path is None:
        return None
    tokenizer = Tokenizer("tokenizer.model" if path.suffix == ".json" else path.name, read_tokenizer(path))
    note = check_size(tokenizer.processor().vocab_size(), config.lm.text_card, path)
    if note:
        notes.append(note)
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
    names = [*([known.tokenizer] if known else []), *TOKENIZER_NAMES]
    return next((path for name in names if (path := place.find(name, optional=True)) is not None), None)


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
    write_text(path, json.dumps(data, ensure_ascii=False))
    if encode_json(path) in (None, encode(tokenizer.processor())):
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
