"""Tensors of a `torch.save` file, read without torch and without running anything the file says (family.md 5.3).

Such a file is a zip of a pickle and of raw little-endian storages. The pickle is read by an unpickler that knows tensors,
their storages and ordered dictionaries; anything else in it is refused by name.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import mlx.core as mx
import numpy as np

from ..config.input_files import file_size
from ..errors import CheckpointError, quoted

# Storage class -> how its items are read; bfloat16, which numpy lacks, as 16-bit integers.
_STORAGES: dict[str, np.dtype] = {
    "FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"), "DoubleStorage": np.dtype("<f8"),
    "BFloat16Storage": np.dtype("<u2"), "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}  # fmt: skip
_MAX_PICKLE_BYTES = 64 << 20
# A view may repeat what its storage holds, but a small file must not fill the memory.
_MAX_REPEATED_ITEMS = 1 << 22


@dataclass(frozen=True)
class _StorageType:
    name: str


@dataclass(frozen=True)
class _Storage:
    """One storage of the archive, not read yet."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    """A view of a storage: offset, shape and strides in items."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """What in the file is not a tensor."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    """Stands for `torch._utils._rebuild_tensor_v2`; gradients and hooks are left out."""
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, _Storage) or any(not isinstance(n, int) or n < 0 for n in numbers):
        raise _Refused("a tensor that is not described by a storage and numbers")
    items = 1
    for n in shape:
        items *= n
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if items else offset
    if items > max(storage.count, _MAX_REPEATED_ITEMS) or last >= storage.count + (items == 0):
        raise _Refused(f"a tensor of shape {list(shape)} on a storage of {storage.count} items")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _TensorUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if module == "torch" and name in _STORAGES:
            return _StorageType(name)
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        if not isinstance(pid, tuple) or len(pid) != 5 or pid[0] != "storage" or not isinstance(pid[1], _StorageType):
            raise _Refused(f"the reference {quoted(pid)}")
        _, kind, key, _, count = pid
        if not isinstance(key, str) or not isinstance(count, int) or count < 0:
            raise _Refused(f"the reference {quoted(pid)}")
        return _Storage(kind.name, key, count)


def read_tensors(path: str | Path) -> dict[str, mx.array]:
    """The tensors of a saved dictionary, by name, as stored (bfloat16 and all). Raises `CheckpointError` for anything else."""
    path = Path(path)
    file_size(path)
    try:
        with path.open("rb") as file:
            return read_tensors_from(file, str(path))
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}.") from None


def read_tensors_from(file: IO[bytes], name: str) -> dict[str, mx.array]:
    """As `read_tensors`, from an open file that errors call `name`."""
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive)
    except zipfile.BadZipFile:
        raise CheckpointError(
            f"{name} is not a file of torch.save in its zip form. Download it again, or use the safetensors file."
        ) from None
    except _Refused as e:
        raise CheckpointError(f"{name} holds {e}, not only tensors; it is not loaded.") from None
    except (
        pickle.UnpicklingError, zlib.error, EOFError, AttributeError, LookupError, TypeError, ValueError, RuntimeError,
    ) as e:  # fmt: skip
        raise CheckpointError(f"{name} is damaged: {str(e) or type(e).__name__}. Download it again.") from None


def _read_archive(archive: zipfile.ZipFile) -> dict[str, mx.array]:
    pickles = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE_BYTES:
        raise ValueError("its data.pkl is larger than any dictionary of tensors")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder").strip() != b"little":
        raise ValueError("its numbers are not little-endian")
    saved = _TensorUnpickler(archive.open(pickles[0])).load()
    if not isinstance(saved, dict):
        raise _Refused(f"a {type(saved).__name__}")
    for key, value in saved.items():
        if not isinstance(key, str) or not isinstance(value, _Tensor):
            raise _Refused(f"a {type(value).__name__} under {key!r}")
    return {key: _read_tensor(archive, root, value) for key, value in saved.items()}


def _read_tensor(archive: zipfile.ZipFile, root: str, tensor: _Tensor) -> mx.array:
    storage = tensor.storage
    dtype = _STORAGES[storage.kind]
    info = archive.getinfo(f"{root}data/{storage.key}")
    if info.file_size != storage.count * dtype.itemsize:
        raise ValueError(
            f"storage {storage.key} has {info.file_size} bytes, {storage.count * dtype.itemsize} are announced"
        )
    items = np.frombuffer(archive.read(info), dtype)
    strides = [s * dtype.itemsize for s in tensor.strides]
    # Copied, so that what is handed out does not depend on the strides.
    values = np.lib.stride_tricks.as_strided(items[tensor.offset :], tensor.shape, strides).copy()
    array = mx.array(values)
    return array.view(mx.bfloat16) if storage.kind == "BFloat16Storage" else array
