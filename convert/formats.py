"""What a weights file is, told by its first bytes and the names of its tensors, never by its own name."""

from __future__ import annotations

from pathlib import Path

from moshi_mlx.checkpoint.layouts.kinds import wrapper
from moshi_mlx.checkpoint.packing import is_int8
from moshi_mlx.checkpoint.weights_file import WeightsFile, is_pickle
from moshi_mlx.config.input_files import file_size, reason
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


def open_weights(path: Path, notes: list[str] | None = None) -> StoredTensors:
    """The header of a weights file of any supported format; no tensor is read.

    A prefix that all names share, as wrappers of torch leave it, is taken off, which `notes` are told.
    """
    tensors = _open(path)
    prefix = wrapper(tensors)
    if not prefix:
        return tensors
    if notes is not None:
        notes.append(f"every tensor of {path.name} is called {prefix}*; the prefix is taken off.")
    return tensors.part(prefix)


def _open(path: Path) -> StoredTensors:
    file_size(path)
    try:
        with path.open("rb") as f:
            start = f.read(8)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {reason(e)}.") from None
    if path.name.endswith(".index.json") or len(start) < 8:
        return StoredTensors.of(WeightsFile(path))
    if start[:4] == b"GGUF":
        return read_gguf(path)
    if is_pickle(start):
        return read_torch_file(path)
    return StoredTensors.of(WeightsFile(path))


def precision_words(tensors: StoredTensors) -> str:
    """How the numbers of a file are stored."""
    if is_int8(tensors):
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
