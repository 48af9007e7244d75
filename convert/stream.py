"""From stored tensors to files, one tensor at a time: what is in memory is the tensor at hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from moshi_mlx.checkpoint.layouts.expr import Expr
from moshi_mlx.errors import CheckpointError

from .part_file import PartFile
from .tensors import StoredTensors

Progress = Callable[[int], None]
_FLOATS = (mx.float32, mx.float16, mx.bfloat16)


@dataclass(frozen=True)
class Job:
    """Tensors of a file that are made from one expression over `tensors`.

    `specs` lists (name, safetensors type, shape) of what `finish` returns for the expression's value.
    """

    expr: Expr
    tensors: StoredTensors
    specs: tuple[tuple[str, str, tuple[int, ...]], ...]
    finish: Callable[[mx.array], Sequence[mx.array]]

    @property
    def cost(self) -> int:
        """Bytes read."""
        return sum(self.tensors[name].nbytes for name in self.expr.sources())

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(spec_bytes(kind, shape) for _, kind, shape in self.specs)

    def position(self) -> tuple[str, int]:
        """Where its first source lies, so that files are read in order."""
        first = next((self.tensors[name] for name in self.expr.sources()), None)
        return ("", 0) if first is None else (str(first.file), first.start)


def spec_bytes(kind: str, shape: tuple[int, ...]) -> int:
    size = {"F32": 4, "U32": 4, "I32": 4, "F16": 2, "BF16": 2, "U16": 2, "I16": 2, "F64": 8, "I64": 8, "U64": 8}.get(
        kind, 1
    )
    for n in shape:
        size *= n
    return size


def in_order(jobs: Sequence[Job]) -> list[Job]:
    return sorted(jobs, key=lambda job: (job.position(), job.specs[0][0]))


def write_file(path: Path, jobs: Sequence[Job], metadata: dict[str, str] | None, progress: Progress) -> None:
    """Write the tensors of `jobs` to a safetensors file. `progress` is told the bytes read since it was told last."""
    jobs = in_order(jobs)
    # With no cache of freed buffers: the next tensor seldom has the size of the last.
    cache_limit = mx.set_cache_limit(0)
    try:
        with PartFile(path, [spec for job in jobs for spec in job.specs], metadata) as writer:
            _write(writer, jobs, progress)
            writer.commit()
    finally:
        mx.set_cache_limit(cache_limit)


def _write(writer: PartFile, jobs: Sequence[Job], progress: Progress) -> None:
    done = set(writer.done)
    # A job whose tensors were not all written is done again from the first that is missing.
    uses = Counter((id(job.tensors), name) for job in jobs for name in job.expr.sources())
    for job in jobs:
        waiting = [name for name, _, _ in job.specs if name not in done]
        values = list(_values(job, uses)) if waiting else []
        for name, _, _ in job.specs if waiting else ():
            # Nothing of this job may be alive when the next one reads.
            x = values.pop(0)
            if name in waiting:
                writer.write(name, x)
            del x
        progress(job.cost)


def _values(job: Job, uses: Counter) -> Sequence[mx.array]:
    def get(name: str) -> mx.array:
        x = job.tensors.array(name)
        uses[id(job.tensors), name] -= 1
        if uses[id(job.tensors), name] <= 0:
            job.tensors.forget(name)
        return x

    try:
        x = job.expr.build(get)
        values = job.finish(x)
        # What was packed says nothing of a NaN that went into it.
        packed = any(v.dtype not in _FLOATS for v in values)
        finite = [_is_finite(v) for v in [*values, *([x] if packed else [])] if v.dtype in _FLOATS and v.size]
        mx.eval(values, finite)
    except (ValueError, RuntimeError) as e:
        if isinstance(e, CheckpointError):
            raise
        raise CheckpointError(f"{job.tensors.path}: {job.specs[0][0]} cannot be made: {e}") from None
    if not all(ok.item() for ok in finite):
        _refuse_values(job)
    return values


def _is_finite(x: mx.array) -> mx.array:
    """NaN and infinity survive a sum; only float16 needs a wider one."""
    return mx.isfinite(mx.sum(x.astype(mx.float32) if x.dtype == mx.float16 else x))


def _refuse_values(job: Job) -> None:
    """Say whether a value that is no number was stored, or came about when it was made smaller."""
    name, kind, _ = job.specs[0]
    x = job.expr.build(job.tensors.array)
    if mx.all(mx.isfinite(x.astype(mx.float32))).item():
        raise CheckpointError(
            f"{job.tensors.path}: {name} has values up to {mx.max(mx.abs(x)).item():.3g}, which {kind} cannot hold. "
            "Convert with --dtype bf16."
        )
    sources = ", ".join(dict.fromkeys(job.expr.sources()))
    raise CheckpointError(
        f"{job.tensors.path} holds NaN or infinite values in {sources}. The file is damaged; download it again."
    )
