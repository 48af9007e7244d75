"""What a weights file is, told by its first bytes and the names of its tensors, never by its own name."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from moshi_mlx.checkpoint.layouts import transformers_lm
from moshi_mlx.checkpoint.layouts.lm import detect
from moshi_mlx.checkpoint.weights_file import WeightsFile, is_pickle
from moshi_mlx.errors import CheckpointError

from .gguf_file import read_gguf
from .tensors import StoredTensors
from .torch_file import read_torch_file

# Kinds of content, in words.
KYUTAI = ("mlx", "pytorch", "candle")
WORDS = {
    "mlx": "MLX", "pytorch": "Kyutai PyTorch", "candle": "Kyutai Candle", "moshi": "transformers Moshi",
    "kyutai_speech_to_text": "transformers Kyutai STT", "text": "transformers text model", "codec": "Mimi codec",
    "adapter": "LoRA adapter", "voice": "voice",
}  # fmt: skip


def open_weights(path: Path) -> StoredTensors:
    """The header of a weights file of any supported format; no tensor is read."""
    try:
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder where a weights file is expected.")
        with path.open("rb") as f:
            start = f.read(8)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}.") from None
    if path.name.endswith(".index.json") or len(start) < 8:
        return StoredTensors.of(WeightsFile(path))
    if start[:4] == b"GGUF":
        return read_gguf(path)
    if is_pickle(start):
        return read_torch_file(path)
    return StoredTensors.of(WeightsFile(path))


def kind_of(names: Collection[str]) -> str | None:
    """What the tensors of a file are: a key of `WORDS`, or None."""
    if any(".lora_A." in n for n in names):
        return "adapter"
    if set(names) in ({"embeddings", "cache"}, {"codes"}):
        return "voice"
    if (architecture := transformers_lm.detect(names)) is not None:
        return architecture
    if "text_emb.weight" in names:
        return detect(names)
    if is_codec(names):
        return "codec"
    return None


def is_codec(names: Collection[str]) -> bool:
    return any(re.match(r"quantizer\.(rvq_first|rvq_rest|semantic_|acoustic_)", n) for n in names)


def precision_words(tensors: StoredTensors) -> str:
    """How the numbers of a file are stored."""
    if any(n.endswith("_scb") for n in tensors):
        return "int8"
    if any(n.endswith(".scales") for n in tensors):
        return "packed"
    kinds: dict[str, int] = {}
    for info in tensors.values():
        encoded = type(info).__name__
        word = {"Q8Info": "Q8_0", "BlockInfo": "GGUF blocks"}.get(encoded, info.dtype)
        kinds[word] = kinds.get(word, 0) + info.nbytes
    return max(kinds, key=lambda k: kinds[k])


def is_reduced(tensors: StoredTensors) -> bool:
    """Whether a file holds fewer bits than bfloat16, so that its de-quantised values are kept in that."""
    return precision_words(tensors) in ("int8", "Q8_0", "GGUF blocks")
