"""GGUF files as Candle writes them: header and tensors, each read by its byte range.

The format is small and a header is checked before anything of it is believed. Float types and `Q8_0`, all that Kyutai's files
hold, are decoded here; other block types by the `gguf` package where it is installed. (MLX reads GGUF too, but a whole file at
once, and no bfloat16.)
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoint.weights_file import TensorInfo
from moshi_mlx.errors import CheckpointError

from .tensors import EncodedInfo, StoredTensors

_FLOATS = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}
_Q8_0, _Q8_0_BLOCK, _Q8_0_BYTES = 8, 32, 34
# Value types of the metadata: number of bytes, or what they hold.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY, _U32 = 8, 9, 4
_MAX_ENTRIES, _MAX_STRING, _MAX_DIMENSIONS = 1 << 20, 1 << 24, 4


@dataclass(frozen=True)
class Q8Info(EncodedInfo):
    """Blocks of 32 signed bytes with one float16 scale each."""

    def decode(self, raw: np.ndarray) -> mx.array:
        blocks = raw.reshape(-1, _Q8_0_BYTES)
        scales = mx.array(np.ascontiguousarray(blocks[:, :2]).view("<f2"))
        values = mx.array(np.ascontiguousarray(blocks[:, 2:]).view(np.int8))
        return (values.astype(mx.float32) * scales.astype(mx.float32)).reshape(self.shape)


@dataclass(frozen=True)
class BlockInfo(EncodedInfo):
    """Any other block type, decoded by the `gguf` package."""

    type: int

    def decode(self, raw: np.ndarray) -> mx.array:
        import gguf

        values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(self.type))
        return mx.array(values.astype(np.float32).reshape(self.shape))


def read_gguf(path: Path) -> StoredTensors:
    """Tensors of a GGUF file, row-major shapes as in PyTorch."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            return StoredTensors(path, _Header(f, path, size).tensors())
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}.") from None
    except (_Damaged, UnicodeDecodeError, struct.error) as e:
        raise CheckpointError(f"{path} has a damaged GGUF header ({e}). Download it again.") from None


class _Damaged(Exception):
    pass


class _Header:
    def __init__(self, file: IO[bytes], path: Path, size: int):
        self.file, self.path, self.size = file, path, size
        if self.read(4) != b"GGUF":
            raise _Damaged("it does not begin with GGUF")
        version = self.number("<I")
        if version not in (2, 3):
            raise CheckpointError(f"{path} is GGUF version {version}; expected 2 or 3.")
        self.count, entries = self.number("<Q"), self.number("<Q")
        if max(self.count, entries) > _MAX_ENTRIES:
            raise _Damaged(f"it announces {self.count} tensors and {entries} entries")
        self.alignment = 32
        for _ in range(entries):
            self.entry()

    def read(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise _Damaged("it is cut short")
        return data

    def number(self, form: str) -> int:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def string(self) -> str:
        length = self.number("<Q")
        if length > _MAX_STRING:
            raise _Damaged(f"a text of {length} bytes")
        return self.read(length).decode("utf-8")

    def entry(self) -> None:
        """One entry of the metadata; only the alignment matters."""
        key, kind = self.string(), self.number("<I")
        if key == "general.alignment" and kind == _U32:
            self.alignment = self.number("<I")
            if not 1 <= self.alignment <= 1 << 20:
                raise _Damaged(f"an alignment of {self.alignment}")
        else:
            self.skip(kind)

    def skip(self, kind: int, nested: bool = False) -> None:
        if kind == _STRING:
            self.string()
        elif kind in _SIZES:
            self.read(_SIZES[kind])
        elif kind == _ARRAY and not nested:
            inner, count = self.number("<I"), self.number("<Q")
            if count > _MAX_STRING:
                raise _Damaged(f"a list of {count} values")
            if inner in _SIZES:
                self.read(_SIZES[inner] * count)
            else:
                for _ in range(count):
                    self.skip(inner, nested=True)
        else:
            raise _Damaged(f"a value of the unknown type {kind}")

    def tensors(self) -> dict[str, TensorInfo]:
        described = [self.tensor() for _ in range(self.count)]
        data_start = -(-self.file.tell() // self.alignment) * self.alignment
        found: dict[str, TensorInfo] = {}
        for name, shape, kind, offset in described:
            if name in found:
                raise CheckpointError(f"{self.path} holds {name} twice.")
            found[name] = info = self.info(name, shape, kind, data_start + offset)
            if info.stop > self.size:
                raise CheckpointError(
                    f"{self.path} is cut short: {name} ends at byte {info.stop}, the file has {self.size}. "
                    "Download it again."
                )
        return found

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.string(), self.number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise _Damaged(f"{name} has {dimensions} dimensions")
        # Stored from the fastest axis on.
        shape = tuple(reversed([self.number("<Q") for _ in range(dimensions)]))
        return name, shape, self.number("<I"), self.number("<Q")

    def info(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> TensorInfo:
        count = 1
        for n in shape:
            count *= n
        if kind in _FLOATS:
            item = {"F32": 4, "F16": 2, "F64": 8, "BF16": 2}[_FLOATS[kind]]
            return TensorInfo(_FLOATS[kind], shape, self.path, start, start + count * item)
        if kind == _Q8_0:
            if shape[-1] % _Q8_0_BLOCK:
                raise _Damaged(f"{name} of shape {list(shape)} is not made of blocks of {_Q8_0_BLOCK}")
            return Q8Info("BF16", shape, self.path, start, start + count // _Q8_0_BLOCK * _Q8_0_BYTES)
        return self.other(name, shape, kind, start, count)

    def other(self, name: str, shape: tuple[int, ...], kind: int, start: int, count: int) -> TensorInfo:
        try:
            import gguf
        except ImportError:
            raise CheckpointError(
                f"{self.path}: {name} has the GGUF type {kind}; beyond floats and Q8_0 this needs: pip install gguf"
            ) from None
        try:
            block, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _Damaged(f"{name} has the unknown type {kind}") from None
        if shape[-1] % block:
            raise _Damaged(f"{name} of shape {list(shape)} is not made of blocks of {block}")
        return BlockInfo("BF16", shape, self.path, start, start + count // block * nbytes, kind)
