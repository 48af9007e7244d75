"""Weight files, looked at before they are read: safetensors headers, shards, and what is not safetensors at all.

Nothing is ever unpickled. A header is checked against the file's length, so that a download cut short is known at once.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from ..config.description import read_json
from ..errors import CheckpointError

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
MX_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
_LOADABLE = ("F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor: safetensors type name, shape and where its bytes are."""

    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Tensors and metadata of a safetensors file, the header checked against the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as f:
            start = f.read(8)
            _refuse_other_formats(path, start, size)
            (length,) = struct.unpack("<Q", start)
            if length > size - 8:
                raise CheckpointError(
                    f"{path} is not a safetensors file or is cut short: its header should be {length} bytes, the file has {size}. "
                    "Download it again."
                )
            text = f.read(length)
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path} is a folder where a weights file is expected.") from None
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {e.strerror or e}.") from None
    try:
        header = json.loads(text, object_pairs_hook=_without_repetition)
        metadata = header.pop("__metadata__", None) or {}
        if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
            raise ValueError("its __metadata__ is no object of texts")
        tensors = {name: _tensor_info(name, entry, path, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{path} has a damaged safetensors header ({e}). Download it again.") from None
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if info.start != end:
            raise CheckpointError(
                f"{path} has a damaged safetensors header: {name} does not follow the tensor before it."
            )
        end = info.stop
    if end != size:
        what = "cut short" if end > size else "followed by unknown data"
        raise CheckpointError(
            f"{path} is {what}: its tensors need {end} bytes, the file has {size}. Download it again."
        )
    return tensors, metadata


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a name that is there twice nobody could say which is meant."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
    return found


def _tensor_info(name: str, entry: dict, path: Path, data_start: int) -> TensorInfo:
    shape = tuple(entry["shape"])
    start, stop = entry["data_offsets"]
    dtype = entry["dtype"]
    count = 1
    for n in shape:
        if not isinstance(n, int) or n < 0:
            raise ValueError(f"{name} has the shape {list(shape)}")
        count *= n
    if dtype not in _ITEM_BYTES:
        raise ValueError(f"{name} has the unknown type {dtype}")
    if not 0 <= start <= stop or stop - start != count * _ITEM_BYTES[dtype]:
        raise ValueError(
            f"{name} of shape {list(shape)} and type {dtype} should take {count * _ITEM_BYTES[dtype]} bytes"
        )
    return TensorInfo(dtype, shape, path, data_start + start, data_start + stop)


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins with these 8 bytes is one of `torch.save`, bare or zipped."""
    bare = start[:1] == b"\x80" and 2 <= start[1] <= 5
    # The same two bytes begin a safetensors header of 640 bytes, or 896, 1152, 1408.
    return (bare and any(start[2:8])) or start[:4] == b"PK\x03\x04"


def _refuse_other_formats(path: Path, start: bytes, size: int) -> None:
    if size < 8:
        raise CheckpointError(
            f"{path} is {'empty' if size == 0 else 'too short to be a weights file'}. Download it again."
        )
    if is_pickle(start):
        raise CheckpointError(
            f"{path} is a PyTorch pickle, which can run code and is never loaded. "
            "Use the safetensors file, or convert it: python -m moshi_mlx.convert SRC DST"
        )
    if start[:4] == b"GGUF":
        raise CheckpointError(f"{path} is a GGUF file. Convert it first: python -m moshi_mlx.convert SRC DST")
    if start.startswith((b"version ", b"<!DOC", b"<html", b"<!doc")):
        raise CheckpointError(f"{path} is not weights but a text page or a Git LFS pointer. Download the file itself.")


_Self = TypeVar("_Self", bound="WeightsFile")


class WeightsFile(Mapping[str, TensorInfo]):
    """Stored tensors by name, over one safetensors file or all shards of an index. `array` reads lazily."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.name.endswith(".index.json"):
            files = _shards(self.path)
        else:
            files = [self.path]
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        for file in files:
            tensors, metadata = read_header(file)
            for name in tensors:
                if name in self.tensors:
                    raise CheckpointError(f"{name} is stored twice, in {self.tensors[name].file.name} and {file.name}.")
            self.tensors.update(tensors)
            self.metadata.update(metadata)
        if not self.tensors:
            raise CheckpointError(f"{self.path} holds no tensors.")
        # What the names of `tensors` lack in front of them in the files.
        self._prefix = ""
        self._open: dict[Path, dict[str, mx.array]] = {}

    def __getitem__(self, name: str) -> TensorInfo:
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def array(self, name: str) -> mx.array:
        """The tensor, read when it is first evaluated."""
        info = self.tensors[name]
        if info.dtype not in _LOADABLE:
            raise CheckpointError(
                f"{info.file}: {name} has the type {info.dtype}, which cannot be loaded; expected one of {', '.join(FLOATS[1:])}."
            )
        if info.file not in self._open:
            self._open[info.file] = dict(mx.load(str(info.file), format="safetensors"))  # type: ignore[arg-type]
        return self._open[info.file][self._prefix + name]

    def forget(self, name: str) -> None:
        """Let go of a tensor that will not be asked for again."""
        self._open.get(self.tensors[name].file, {}).pop(self._prefix + name, None)

    def close(self) -> None:
        """Drop the open files and every array not yet handed out."""
        self._open = {}

    def part(self: _Self, prefix: str) -> _Self:
        """The tensors whose names begin with `prefix`, without it."""
        found = {n.removeprefix(prefix): t for n, t in self.tensors.items() if n.startswith(prefix)}
        return self._selected(found, prefix)

    def without(self: _Self, prefix: str) -> _Self:
        """The tensors whose names do not begin with `prefix`."""
        return self._selected({n: t for n, t in self.tensors.items() if not n.startswith(prefix)})

    def _selected(self: _Self, tensors: dict[str, TensorInfo], prefix: str = "") -> _Self:
        selection = copy.copy(self)
        selection.tensors, selection._prefix = tensors, self._prefix + prefix
        # Nothing read by one is kept by the other.
        selection.close()
        return selection


def shard_names(index: Path) -> dict[str, str]:
    """File of each tensor by an index of shards. Raises `CheckpointError` for a file outside the index's folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is not an index of shards: it has no 'weight_map'.")
    names = {tensor: str(name) for tensor, name in weight_map.items()}
    for name in sorted(set(names.values())):
        if Path(name).name != name:
            raise CheckpointError(f"{index} names the file {name!r} outside its folder, which is refused.")
    return names


def _shards(index: Path) -> list[Path]:
    """Files named by an index, all inside its folder."""
    weight_map = shard_names(index)
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    stored = {}
    for file in files:
        stored.update(dict.fromkeys(read_header(file)[0], file.name))
    for tensor, name in weight_map.items():
        if stored.get(tensor) != name:
            raise CheckpointError(
                f"{index} says {tensor} is in {name}, but it is {'in ' + stored[tensor] if tensor in stored else 'missing'}."
            )
    return files
