"""Stored tensors of any source, read one at a time: a header tells where each lies, and only its bytes are read.

Memory never holds more of a file than the tensor asked for last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoint.weights_file import FLOATS, TensorInfo, WeightsFile
from moshi_mlx.errors import CheckpointError

# How items of a stored type are read; bfloat16, which numpy lacks, as 16-bit integers.
NUMPY_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True)
class EncodedInfo(TensorInfo):
    """A tensor whose bytes are not simply its values in order. `dtype` is the type it counts as."""

    def decode(self, raw: np.ndarray) -> mx.array:
        """Values of the bytes `start` to `stop`, uint8."""
        raise TypeError(f"{type(self).__name__} has no decode()")


class StoredTensors(WeightsFile):
    """Tensors by name over any number of files; `path` is what errors call them."""

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str] | None = None):
        self.path = path
        self.tensors = dict(tensors)
        self.metadata = dict(metadata or {})
        self.prefix = ""
        self._last: tuple[str, mx.array] | None = None

    @classmethod
    def of(cls, file: WeightsFile) -> StoredTensors:
        return cls(file.path, file.tensors, file.metadata)

    def array(self, name: str) -> mx.array:
        """The tensor, read now. Asked again for the same one, it is not read twice."""
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = (name, read_tensor(name, self.tensors[name]))
        return self._last[1]

    def forget(self, name: str) -> None:
        if self._last is not None and self._last[0] == name:
            self._last = None

    def close(self) -> None:
        self._last = None

    def joined(self, prefix: str, other: StoredTensors) -> StoredTensors:
        """These and those of `other`, whose names get `prefix`."""
        return StoredTensors(self.path, {**self.tensors, **{prefix + n: t for n, t in other.tensors.items()}})


def read_tensor(name: str, info: TensorInfo) -> mx.array:
    """The values of one tensor; float64 becomes float32."""
    if not isinstance(info, EncodedInfo) and info.dtype not in NUMPY_TYPES:
        raise CheckpointError(
            f"{info.file}: {name} has the type {info.dtype}, which cannot be converted; expected BF16, F16 or F32."
        )
    raw = np.empty(info.nbytes, np.uint8)
    try:
        with info.file.open("rb", buffering=0) as f:
            f.seek(info.start)
            view, done = memoryview(raw), 0
            # One call reads 2 GB at most.
            while done < info.nbytes and (count := f.readinto(view[done:])):
                done += count
    except OSError as e:
        raise CheckpointError(f"{info.file} cannot be read: {e.strerror or e}.") from None
    if done < info.nbytes:
        raise CheckpointError(f"{info.file} is cut short in {name}. Download it again.")
    if isinstance(info, EncodedInfo):
        return info.decode(raw)
    return to_array(raw.view(NUMPY_TYPES[info.dtype]).reshape(info.shape), info.dtype)


def to_array(values: np.ndarray, kind: str) -> mx.array:
    """Numpy values of a stored type as an MLX array that owns them."""
    if kind == "F64":
        values = values.astype(np.float32)
    x = mx.array(values)
    return x.view(mx.bfloat16) if kind == "BF16" else x


def check_finite(path: Path) -> None:
    """Refuse a file that will be copied as it is, if a value of it is no number."""
    tensors = StoredTensors.of(WeightsFile(path))
    for name, info in tensors.items():
        if info.dtype in FLOATS and info.nbytes and not mx.all(mx.isfinite(tensors.array(name))).item():
            raise CheckpointError(
                f"{path} holds NaN or infinite values in {name}. The file is damaged; download it again."
            )
