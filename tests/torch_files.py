"""Files as `torch.save` writes them, made without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoint.weights_writer import to_bytes

STORAGES = {
    mx.float32: "FloatStorage", mx.float16: "HalfStorage", mx.bfloat16: "BFloat16Storage", mx.int64: "LongStorage",
    mx.int32: "IntStorage", mx.bool_: "BoolStorage",
}  # fmt: skip


def _text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def _number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def _numbers(values) -> bytes:
    return b"(" + b"".join(_number(v) for v in values) + b"t"


def tensor(kind: str, key: str, count: int, shape, strides=None, offset: int = 0) -> bytes:
    """Opcodes that push one tensor."""
    strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))] if strides is None else strides
    storage = (
        b"(" + _text("storage") + f"ctorch\n{kind}\n".encode() + _text(key) + _text("cpu") + _number(count) + b"tQ"
    )
    hooks = b"ccollections\nOrderedDict\n)R"
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + _number(offset) + _numbers(shape) + _numbers(strides)
        + b"\x89" + hooks + b"tR"
    )  # fmt: skip


def dictionary(items: dict[str, bytes]) -> bytes:
    """A pickle of a dictionary whose values are given as opcodes."""
    return b"\x80\x02}(" + b"".join(_text(k) + v for k, v in items.items()) + b"u."


def write_archive(path: Path, data: bytes, storages: dict[str, bytes], byteorder: bytes | None = b"little") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        if byteorder is not None:
            archive.writestr("archive/byteorder", byteorder)
        for key, raw in storages.items():
            archive.writestr(f"archive/data/{key}", raw)
    return path


def write(path: Path, tensors: dict[str, mx.array]) -> Path:
    """`torch.save(tensors, path)`."""
    items, storages = {}, {}
    for i, (name, x) in enumerate(tensors.items()):
        items[name] = tensor(STORAGES[x.dtype], str(i), x.size, x.shape)
        storages[str(i)] = to_bytes(x)
    return write_archive(path, dictionary(items), storages)
