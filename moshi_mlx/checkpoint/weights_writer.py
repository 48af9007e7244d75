"""Writes a safetensors file tensor by tensor: the header first, from shapes alone, then each tensor's bytes as it comes.

Memory never holds more than one tensor. The file has a temporary name until it is whole.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..machine.memory import gigabytes
from ..output import OutputFile

TYPE_NAMES = {
    mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint16: "U16", mx.uint8: "U8",
    mx.int64: "I64", mx.int32: "I32", mx.int16: "I16", mx.int8: "I8", mx.bool_: "BOOL",
}  # fmt: skip
_SIZES = {name: dtype.size for dtype, name in TYPE_NAMES.items()}


def to_bytes(x: mx.array) -> bytes:
    """Little-endian bytes of an array, row by row."""
    return _numpy(x).tobytes()


def _numpy(x: mx.array) -> np.ndarray:
    """The values as numpy sees them without a copy; bfloat16, which it lacks, as 16-bit integers."""
    return np.ascontiguousarray(np.array(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x, copy=False))


class WeightsWriter:
    """`tensors` lists (name, safetensors type, shape) in the order in which `write` will be called."""

    def __init__(
        self,
        path: str | Path,
        tensors: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: dict[str, str] | None = None,
    ):
        self.path = Path(path)
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        self._sizes: dict[str, int] = {}
        offset = 0
        for name, kind, shape in tensors:
            size = int(np.prod(shape, dtype=np.int64)) * _SIZES[kind]
            header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, offset + size]}
            self._sizes[name] = size
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        # Readers map tensors where they lie: keep them aligned.
        text += b" " * (-len(text) % 8)
        self.total_bytes = 8 + len(text) + offset
        self._waiting = iter(list(self._sizes))
        self._begin(struct.pack("<Q", len(text)) + text)

    def _begin(self, header: bytes) -> None:
        """Open the file and write the header."""
        refuse_if_disk_is_full(self.path.parent, self.total_bytes)
        self._file = OutputFile(self.path)
        try:
            self._file.write(header)
        except BaseException:
            self.discard()
            raise

    def write(self, name: str, data: mx.array | bytes) -> None:
        """The next tensor, as announced."""
        expected = next(self._waiting, None)
        raw = memoryview(data) if isinstance(data, bytes) else _numpy(data).reshape(-1).data
        if name != expected or raw.nbytes != self._sizes[name]:
            raise ValueError(f"tensor {name} of {raw.nbytes} bytes is not the announced {expected}")
        self._file.write(raw)

    def commit(self) -> None:
        """Give the finished file its name."""
        left = next(self._waiting, None)
        if left is not None:
            raise ValueError(f"tensor {left} was announced but not written")
        self._file.commit()

    def discard(self) -> None:
        """Remove what was written, unless it was committed."""
        self._file.discard()

    def __enter__(self) -> WeightsWriter:
        return self

    def __exit__(self, *_) -> None:
        self.discard()


def save_weights(path: str | Path, arrays: Mapping[str, mx.array], metadata: dict[str, str] | None = None) -> None:
    """Arrays as a safetensors file, whole or not at all. Raises `OutputError`."""
    arrays = dict(sorted(arrays.items()))
    specs = [(name, TYPE_NAMES[x.dtype], tuple(x.shape)) for name, x in arrays.items()]
    with WeightsWriter(path, specs, metadata) as file:
        for name, x in arrays.items():
            file.write(name, x)
        file.commit()


def refuse_if_disk_is_full(folder: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as e:
        raise CheckpointError(f"{folder} cannot be written to: {e.strerror or e}.") from None
    if needed > free:
        raise CheckpointError(f"{folder} has {gigabytes(free)} free, {gigabytes(needed)} are needed.")
