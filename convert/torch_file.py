"""State dicts that `torch.save` wrote, old and new form, tensor by tensor: `torch_reader`'s unpickler, and byte ranges.

The new form is a zip of a pickle and of raw storages; the old one is pickles followed by the storages. Nothing but tensors,
numbers, texts and dictionaries of them is ever made.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoint import torch_reader
from moshi_mlx.checkpoint.weights_file import TensorInfo
from moshi_mlx.errors import CheckpointError, quoted

from .tensors import NUMPY_TYPES, EncodedInfo, StoredTensors, to_array

_KINDS = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64", "LongStorage": "I64",
    "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip
_ITEM_BYTES = {kind: np.dtype(form).itemsize for kind, form in NUMPY_TYPES.items()}
_OLD_MAGIC, _OLD_PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
# Where training code keeps the weights, outermost first.
_PLACES = (
    (), ("model",), ("state_dict",), ("model_state_dict",), ("best_state", "model"), ("fsdp_best_state", "model"),
    ("best_state",), ("module",),
)  # fmt: skip


@dataclass(frozen=True)
class StridedInfo(EncodedInfo):
    """A view of a storage: `start` is its first item, `stop` the end of its last."""

    strides: tuple[int, ...]

    def decode(self, raw: np.ndarray) -> mx.array:
        items = raw.view(NUMPY_TYPES[self.dtype])
        steps = [s * items.itemsize for s in self.strides]
        return to_array(np.lib.stride_tricks.as_strided(items, self.shape, steps).copy(), self.dtype)


class _Unpickler(torch_reader._TensorUnpickler):
    """Also knows parameters, which hold a tensor, and the longer references of the old form."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if (module, name) == ("torch._utils", "_rebuild_tensor"):
            return torch_reader._rebuild_tensor
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        if isinstance(pid, tuple) and len(pid) == 6 and pid[5] is None:
            pid = pid[:5]
        return super().persistent_load(pid)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def read_torch_file(path: Path) -> StoredTensors:
    """The state dict of a file, wherever training code put it in there. Raises `CheckpointError` for anything else."""
    try:
        with path.open("rb") as file:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    saved, locate = _read_zip(archive, file)
            else:
                file.seek(0)
                saved, locate = _read_old(file)
            return StoredTensors(path, _tensors(_state_dict(saved), path, locate))
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path} is a damaged archive of torch.save. Download it again.") from None
    except torch_reader._Refused as e:
        raise CheckpointError(f"{path} holds {e}, not only tensors; it is not loaded.") from None
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}.") from None
    except (
        pickle.UnpicklingError, zlib.error, EOFError, AttributeError, LookupError, TypeError, ValueError, RuntimeError, struct.error,
        MemoryError,
    ) as e:  # fmt: skip
        raise CheckpointError(f"{path} is damaged: {str(e) or type(e).__name__}. Download it again.") from None


# (storage key, bytes it should have) -> where it begins in the file
_Locate = Callable[[str, int], int]


def _read_zip(archive: zipfile.ZipFile, file: IO[bytes]) -> tuple[Any, _Locate]:
    pickles = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
    if len(pickles) != 1:
        raise ValueError("it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if archive.getinfo(pickles[0]).file_size > torch_reader._MAX_PICKLE_BYTES:
        raise ValueError("its data.pkl is larger than any dictionary of tensors")
    if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder").strip() != b"little":
        raise ValueError("its numbers are not little-endian")

    def locate(key: str, nbytes: int) -> int:
        info = archive.getinfo(f"{root}data/{key}")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != nbytes:
            raise ValueError(f"storage {key} has {info.file_size} bytes, {nbytes} are announced")
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))
        return info.header_offset + 30 + name + extra

    return _Unpickler(archive.open(pickles[0])).load(), locate


def _read_old(file: IO[bytes]) -> tuple[Any, _Locate]:
    """Magic number, version, machine, object and list of storages as pickles; then each storage with its length in front."""
    if _Unpickler(file).load() != _OLD_MAGIC or _Unpickler(file).load() != _OLD_PROTOCOL:
        raise ValueError("it is not a file of torch.save")
    machine = _Unpickler(file).load()
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    saved, keys = _Unpickler(file).load(), _Unpickler(file).load()
    sizes = {s.key: s.count * _ITEM_BYTES[_KINDS[s.kind]] for s in _storages(saved, set())}
    starts: dict[str, int] = {}
    position = file.tell()
    for key in keys:
        if key not in sizes:
            raise ValueError(f"storage {key} belongs to nothing")
        starts[key] = position + 8
        position += 8 + sizes[key]
    file.seek(0, 2)
    if position > file.tell():
        raise ValueError(f"it should have {position} bytes, it has {file.tell()}")
    return saved, lambda key, nbytes: starts[key]


def _storages(saved: Any, seen: set[int]) -> list[torch_reader._Storage]:
    """Every storage in there. What is met again is in `seen` and not looked at twice: lists of lists can say much in few bytes."""
    if isinstance(saved, torch_reader._Tensor):
        return [saved.storage]
    if not isinstance(saved, (dict, list, tuple)) or id(saved) in seen:
        return []
    seen.add(id(saved))
    values = saved.values() if isinstance(saved, dict) else saved
    return [s for value in values for s in _storages(value, seen)]


def _state_dict(saved: Any) -> Mapping[str, Any]:
    """The dictionary of tensors inside what was saved."""
    for place in _PLACES:
        found = saved
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict) and any(isinstance(v, torch_reader._Tensor) for v in found.values()):
            return found
    inside = (
        f"a dictionary of {', '.join(map(str, list(saved)[:6]))}" if isinstance(saved, dict) else type(saved).__name__
    )
    raise torch_reader._Refused(f"{inside} and no state dict under a known name")


def _tensors(state: Mapping[str, Any], path: Path, locate: _Locate) -> dict[str, TensorInfo]:
    """Tensors by name; other values beside them (counters, options) are left out."""
    size = path.stat().st_size
    out: dict[str, TensorInfo] = {}
    for name, tensor in state.items():
        if not isinstance(tensor, torch_reader._Tensor):
            continue
        if not isinstance(name, str):
            raise torch_reader._Refused(f"a tensor under {quoted(name)}")
        kind = _KINDS[tensor.storage.kind]
        item = _ITEM_BYTES[kind]
        base = locate(tensor.storage.key, tensor.storage.count * item)
        if base + tensor.storage.count * item > size:
            raise ValueError(f"the storage of {name} ends after the file")
        out[name] = _info(tensor, kind, item, path, base)
    return out


def _info(tensor: torch_reader._Tensor, kind: str, item: int, path: Path, base: int) -> TensorInfo:
    shape, strides = tensor.shape, tensor.strides
    start = base + tensor.offset * item
    in_order, expected = True, 1
    for n, stride in zip(reversed(shape), reversed(strides), strict=True):
        in_order = in_order and (n <= 1 or stride == expected)
        expected *= n
    if in_order:
        return TensorInfo(kind, shape, path, start, start + expected * item)
    last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if expected else -1
    return StridedInfo(kind, shape, path, start, start + (last + 1) * item, strides)
