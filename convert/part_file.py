"""A safetensors file whose writing can be taken up again where it was interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from moshi_mlx.checkpoint.weights_writer import WeightsWriter, refuse_if_disk_is_full
from moshi_mlx.errors import OutputError
from moshi_mlx.output import PartOutput, write_text

# Written tensors are made safe on the disk, and counted as done, this often.
CHECKPOINT_BYTES = 512 << 20


class PartFile(WeightsWriter):
    """As `WeightsWriter`, but the unfinished file keeps a fixed name and is continued by the next run of the same work.

    `done` lists the tensors that are there already and are not written again: all of them where the finished file is there. What
    was on its way when the machine stopped is not trusted: only tensors before the last record are.
    """

    def __init__(
        self, path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: dict[str, str] | None
    ):
        self.done: list[str] = []
        self._record = path.with_name(f".{path.name}.done")
        self._count, self._since = 0, 0
        super().__init__(path, tensors, metadata)

    def _begin(self, header: bytes) -> None:
        self._file: PartOutput | None = None  # type: ignore[assignment]
        if self._is_whole(header):
            self.done, self._waiting = list(self._sizes), iter(())
            return
        part = self.path.with_name(f".{self.path.name}.part")
        self._digest = hashlib.sha256(header).hexdigest()
        self._count = self._recorded(part, len(header))
        sizes = list(self._sizes.items())
        # What an earlier run wrote is written over, or kept: its bytes need no room either way.
        refuse_if_disk_is_full(self.path.parent, self.total_bytes - (part.stat().st_size if part.is_file() else 0))
        self._file = PartOutput(self.path, part)
        if not self._count:
            self._file.go_on_at(0)
            self._file.write(header)
        self._file.go_on_at(len(header) + sum(size for _, size in sizes[: self._count]))
        self.done = [name for name, _ in sizes[: self._count]]
        self._waiting = iter([name for name, _ in sizes[self._count :]])

    def _is_whole(self, header: bytes) -> bool:
        """Whether an earlier run finished the file: it got its name when every byte was safe on the disk."""
        if self.path.is_symlink() or not self.path.is_file() or self.path.stat().st_size != self.total_bytes:
            return False
        with self.path.open("rb") as f:
            return f.read(len(header)) == header

    def _recorded(self, part: Path, header_bytes: int) -> int:
        """Tensors that an earlier run finished, if it wrote the same header and all of them are there."""
        try:
            record = json.loads(self._record.read_text())
            count, size = int(record["tensors"]), part.stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        needed = header_bytes + sum(list(self._sizes.values())[:count])
        return count if record.get("header") == self._digest and size >= needed else 0

    def write(self, name: str, data) -> None:
        super().write(name, data)
        self._count += 1
        self._since += self._sizes[name]
        if self._since >= CHECKPOINT_BYTES:
            self.checkpoint()

    def checkpoint(self) -> None:
        """Count what was written as done."""
        assert self._file is not None
        self._file.sync()
        write_text(self._record, json.dumps({"header": self._digest, "tensors": self._count}))
        self._since = 0

    def commit(self) -> None:
        if self._file is not None:
            super().commit()
            self._file = None
        self._record.unlink(missing_ok=True)

    def discard(self) -> None:
        """Leave the part for the next run. Whoever owns the folder removes it when there shall be none."""
        if self._file is not None:
            # The disk may be full: then the last record stands.
            with contextlib.suppress(OutputError):
                self.checkpoint()
            self._file.discard()
            self._file = None
