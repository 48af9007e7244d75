"""Weight files, looked at before they are read: safetensors headers, shards, and what is not safetensors at all.

Nothing is ever unpickled. A header is checked against the file's length, so that a download cut short is known at once.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from ..config.input_files import check_name, file_size, name_for_mlx, reason
from ..config.json_text import LARGEST, parse_json, read_json
from ..errors import CheckpointError, first_line, quoted

_ITEM_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
MX_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
# Bounds of one tensor: MLX counts axes and items in small integers.
MOST_AXES, LARGEST_SIZE = 8, 1 << 60
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
    size = file_size(path)
    try:
        with path.open("rb") as f:
            start = f.read(8)
            _refuse_other_formats(path, start, size)
            (length,) = struct.unpack("<Q", start)
            if length > size - 8:
                raise CheckpointError(
                    f"{path} is not a safetensors file or is cut short: its header should be {length} bytes, the file has {size}. "
                    "Download it again."
                )
            if length > LARGEST:
                raise CheckpointError(f"{path} has a header of {length} bytes; at most {LARGEST} are expected.")
            text = f.read(length)
    except OSError as e:
        raise CheckpointError(f"{path} cannot be read: {reason(e)}.") from None
    try:
        header = parse_json(text)
        if not isinstance(header, dict):
            raise ValueError(f"it is a {type(header).__name__}")
        metadata = header.pop("__metadata__", None)
        # MLX writes null where there is none.
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
            raise ValueError("its __metadata__ is no object of texts")
        tensors = {name: _tensor_info(name, entry, path, 8 + length) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError) as e:
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


def _tensor_info(name: str, entry: Any, path: Path, data_start: int) -> TensorInfo:
    known = {"dtype", "shape", "data_offsets"}
    if not isinstance(entry, dict) or set(entry) != known:
        raise ValueError(f"{quoted(name)} is not described by {', '.join(sorted(known))}")
    shape, dtype, offsets = entry["shape"], entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"{quoted(name)} has the unknown type {quoted(dtype)}")
    count = 1
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(map(_is_size, shape)):
        raise ValueError(f"{quoted(name)} has the shape {quoted(shape)}")
    for n in shape:
        count *= n
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        raise ValueError(f"{quoted(name)} lies at {quoted(offsets)}")
    start, stop = offsets
    if stop - start != count * _ITEM_BYTES[dtype]:
        raise ValueError(
            f"{quoted(name)} of shape {quoted(shape)} and type {dtype} should take {count * _ITEM_BYTES[dtype]} bytes"
        )
    shape = tuple(shape)
    return TensorInfo(dtype, shape, path, data_start + start, data_start + stop)


def _is_size(n: Any) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= LARGEST_SIZE


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
        self.prefix = ""
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
            try:
                loaded = mx.load(name_for_mlx(info.file), format="safetensors")
            except RuntimeError as e:
                # MLX reads the header again and takes less of JSON: no half of a character, for one.
                raise CheckpointError(f"{info.file} cannot be read: {first_line(e)}") from None
            self._open[info.file] = dict(loaded)  # type: ignore[arg-type]
        return self._open[info.file][self.prefix + name]

    def forget(self, name: str) -> None:
        """Let go of a tensor that will not be asked for again."""
        self._open.get(self.tensors[name].file, {}).pop(self.prefix + name, None)

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
        selection.tensors, selection.prefix = tensors, self.prefix + prefix
        # Nothing read by one is kept by the other.
        selection.close()
        return selection


def shard_names(index: Path) -> dict[str, str]:
    """File of each tensor by an index of shards. Raises `CheckpointError` for a file outside the index's folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} is not an index of shards: it has no 'weight_map'.")
    for name in weight_map.values():
        if isinstance(name, str) and "/" in name:
            raise CheckpointError(f"{index} names the file {quoted(name)} outside its folder, which is refused.")
        check_name(name, str(index))
    return weight_map


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
                f"{index} says {quoted(tensor)} is in {name}, but it is {'in ' + stored[tensor] if tensor in stored else 'missing'}."
            )
    return files
