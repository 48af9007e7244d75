"""Writes a safetensors file tensor by tensor: the header first, from shapes alone, then each tensor's bytes as it comes.

Memory never holds more than one tensor. The file has a temporary name until it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from ..machine.memory import gigabytes

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
        self._temporary: str | None = None
        try:
            self._begin(struct.pack("<Q", len(text)) + text)
        except OSError as e:
            self.discard()
            raise CheckpointError(f"{self.path} cannot be written: {e.strerror or e}.") from None

    def _begin(self, header: bytes) -> None:
        """Open the temporary file and write the header."""
        refuse_if_disk_is_full(self.path.parent, self.total_bytes)
        handle, self._temporary = tempfile.mkstemp(prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent)
        self._file = os.fdopen(handle, "wb")
        self._file.write(header)

    def write(self, name: str, data: mx.array | bytes) -> None:
        """The next tensor, as announced."""
        expected = next(self._waiting, None)
        raw = memoryview(data) if isinstance(data, bytes) else _numpy(data).reshape(-1).data
        if name != expected or raw.nbytes != self._sizes[name]:
            raise ValueError(f"tensor {name} of {raw.nbytes} bytes is not the announced {expected}")
        try:
            self._file.write(raw)
        except OSError as e:
            raise CheckpointError(f"{self.path} cannot be written: {e.strerror or e}.") from None

    def commit(self) -> None:
        """Give the finished file its name."""
        left = next(self._waiting, None)
        if left is not None:
            raise ValueError(f"tensor {left} was announced but not written")
        assert self._temporary is not None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.chmod(self._temporary, 0o644)
            os.replace(self._temporary, self.path)
        except OSError as e:
            raise CheckpointError(f"{self.path} cannot be written: {e.strerror or e}.") from None
        self._temporary = None

    def discard(self) -> None:
        """Remove what was written, unless it was committed."""
        if self._temporary is not None:
            file = getattr(self, "_file", None)
            if file is not None:
                # A full disk fails again when closing; the file goes away all the same.
                with contextlib.suppress(OSError):
                    file.close()
            Path(self._temporary).unlink(missing_ok=True)
            self._temporary = None

    def __enter__(self) -> WeightsWriter:
        return self

    def __exit__(self, *_) -> None:
        self.discard()


def refuse_if_disk_is_full(folder: Path, needed: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError as e:
        raise CheckpointError(f"{folder} cannot be written to: {e.strerror or e}.") from None
    if needed > free:
        raise CheckpointError(f"{folder} has {gigabytes(free)} free, {gigabytes(needed)} are needed.")
