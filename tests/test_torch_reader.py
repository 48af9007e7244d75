"""Saved tensors are read without torch, and nothing else in such a file ever runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch_files
from moshi_mlx.convert.torch_file import read_torch_file
from torch_files import dictionary, tensor, write_archive

from moshi_mlx.checkpoint.torch_reader import read_tensors
from moshi_mlx.errors import CheckpointError

VOICE = Path(__file__).parent / "goldens" / "family" / "personaplex" / "tiny_voice"


def test_a_file_of_torch_save():
    """The reference wrote both files: one in bfloat16 with torch, one in float32 as safetensors."""
    ours, expected = read_tensors(VOICE.with_suffix(".pt")), mx.load(str(VOICE.with_suffix(".safetensors")))
    assert sorted(ours) == sorted(expected)
    assert (ours["embeddings"].dtype, ours["cache"].dtype) == (mx.bfloat16, mx.int64)
    assert mx.array_equal(ours["embeddings"], expected["embeddings"].astype(mx.bfloat16))
    assert mx.array_equal(ours["cache"], expected["cache"])


@pytest.mark.parametrize("dtype", torch_files.STORAGES, ids=str)
def test_every_type(tmp_path, dtype):
    x = (mx.arange(24).reshape(2, 3, 4) - 11).astype(dtype)
    y = read_tensors(torch_files.write(tmp_path / "a.pt", {"x": x, "empty": mx.zeros((0, 3), dtype)}))
    assert y["x"].dtype == dtype
    assert mx.array_equal(y["x"], x)
    assert y["empty"].shape == (0, 3)


def test_strides_and_offset(tmp_path):
    """A transposed view of part of a storage."""
    raw = np.arange(10, dtype=np.float32)
    data = dictionary({"x": tensor("FloatStorage", "0", 10, (3, 2), strides=(1, 3), offset=2)})
    x = read_tensors(write_archive(tmp_path / "a.pt", data, {"0": raw.tobytes()}))["x"]
    np.testing.assert_array_equal(np.array(x), raw[2:8].reshape(2, 3).T)


def test_code_is_refused_and_not_run(tmp_path):
    marker = tmp_path / "ran"
    for call in (
        f"cos\nsystem\n(X{{}}touch {marker}tR",
        f"cbuiltins\neval\n(X{{}}open({str(marker)!r}, 'w')tR",
        f"ctorch\nload\n(X{{}}{marker}tR",
    ):
        head, _, body = call.partition("{}")
        text = body.removesuffix("tR")
        opcodes = head.encode() + len(text).to_bytes(4, "little") + text.encode() + b"tR"
        path = write_archive(tmp_path / "a.pt", dictionary({"x": opcodes}), {})
        with pytest.raises(CheckpointError, match=r"holds (os.system|builtins.eval|torch.load), not only tensors"):
            read_tensors(path)
    assert not marker.exists()


FLOATS = np.zeros(4, np.float32).tobytes()
DAMAGED = {
    "not a dictionary": (b"\x80\x02]q\x00.", {}, "holds a list"),
    "a number among the tensors": (dictionary({"x": b"K\x01"}), {}, "holds a int under 'x'"),
    "a list as a tensor": (dictionary({"x": b"]"}), {}, "holds a list under 'x'"),
    "beyond its storage": (dictionary({"x": tensor("FloatStorage", "0", 4, (5,))}), {"0": FLOATS}, "storage of 4 items"),
    "many from few": (
        dictionary({"x": tensor("FloatStorage", "0", 4, (1 << 20, 1 << 20), strides=(0, 0))}), {"0": FLOATS}, "storage of 4",
    ),
    "negative offset": (dictionary({"x": tensor("FloatStorage", "0", 4, (2,), offset=-2)}), {"0": FLOATS}, "by a storage and"),
    "stride past the end": (
        dictionary({"x": tensor("FloatStorage", "0", 4, (2,), strides=(9,))}), {"0": FLOATS}, "storage of 4 items",
    ),
    "missing storage": (dictionary({"x": tensor("FloatStorage", "7", 4, (4,))}), {"0": FLOATS}, "is damaged"),
    "short storage": (dictionary({"x": tensor("FloatStorage", "0", 8, (8,))}), {"0": FLOATS}, "16 bytes, 32 are announced"),
    "unknown storage": (dictionary({"x": tensor("QInt8Storage", "0", 4, (4,))}), {"0": FLOATS}, "torch.QInt8Storage"),
    "cut pickle": (dictionary({"x": tensor("FloatStorage", "0", 4, (4,))})[:-9], {"0": FLOATS}, "is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGED)
def test_refusals(tmp_path, case):
    data, storages, message = DAMAGED[case]
    with pytest.raises(CheckpointError, match=message):
        read_tensors(write_archive(tmp_path / "a.pt", data, storages))


def test_other_files(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_tensors(tmp_path / "no.pt")
    (tmp_path / "old.pt").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save in its zip form"):
        read_tensors(tmp_path / "old.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("a/b.txt", "hello")
    with pytest.raises(CheckpointError, match=r"no data\.pkl"):
        read_tensors(tmp_path / "other.pt")
    path = write_archive(tmp_path / "big.pt", dictionary({}), {}, byteorder=b"big")
    with pytest.raises(CheckpointError, match="little-endian"):
        read_tensors(path)
    whole = VOICE.with_suffix(".pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="zip form"):
        read_tensors(tmp_path / "half.pt")


@pytest.mark.parametrize("read", [read_tensors, read_torch_file])
def test_a_packed_archive_that_is_damaged(tmp_path, read):
    """`torch.save` packs nothing; who zips a file anew does."""
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", dictionary({}))
    data = bytearray(path.read_bytes())
    # A block of a kind that there is not.
    data[data.index(b"a/data.pkl") + len("a/data.pkl")] = 0xFF
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged: .* Download it again"):
        read(path)
