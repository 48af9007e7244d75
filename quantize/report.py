"""What a packing costs and saves, in figures: sizes, bytes read per frame, errors of layers, quality, and what chips could do.

Times are arithmetic, never measurements: bytes that a frame has to read, divided by a chip's nominal memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from moshi_mlx.convert.language_model import LanguageModel
from rich.table import Column, Table

from moshi_mlx.checkpoint.packing import Quantization
from moshi_mlx.checkpoint.recipes import Packing
from moshi_mlx.config import LmConfig
from moshi_mlx.machine import memory
from moshi_mlx.machine.chips import BANDWIDTH
from moshi_mlx.machine.memory import gigabytes
from moshi_mlx.models.lm_model import LmModel
from moshi_mlx.models.traffic import frame_traffic

from .quality import Stream

FRAME_MS = 80.0
LABEL = "lower bound, arithmetic: bytes per frame / nominal bandwidth; nobody measured this"
_ROWS = 4096


@dataclass
class Report:
    """Everything that is shown, and written as JSON."""

    source: str
    result: str
    recipe: str
    bits_per_weight: float
    source_bytes: int
    result_bytes: int
    frame_bytes: dict[str, int]
    codes: str
    streams: list[Stream]
    layers: list[dict[str, Any]]
    chips: list[dict[str, Any]]
    codec: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "chips_are": LABEL}


def layer_errors(
    source: LanguageModel, result: LanguageModel, packing: Packing, progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Per packed layer, the error of what was written relative to the source: |W - Q| / |W| over all numbers."""
    wanted, found = source.dense_plan(), result.dense_plan()
    rows = []
    for i, (path, q) in enumerate(packing.layers.items()):
        name = f"{path}.weight"
        a, b = wanted[name].build(source.tensors.array), found[name].build(result.tensors.array)
        error = _relative_error(a, b)
        rows.append({"layer": path, "packing": str(q), "shape": list(a.shape), "error": error})
        source.tensors.close()
        result.tensors.close()
        progress(i + 1, len(packing.layers))
    return rows


def _relative_error(a: mx.array, b: mx.array) -> float:
    """In blocks of rows, so that a large table needs little more than itself."""
    wrong, size = 0.0, 0.0
    for start in range(0, a.shape[0], _ROWS):
        x, y = (z[start : start + _ROWS].astype(mx.float32) for z in (a, b))
        wrong += mx.sum((x - y) ** 2).item()
        size += mx.sum(x * x).item()
    return (wrong / size) ** 0.5 if size else 0.0


def frame_bytes(cfg: LmConfig, packing: Mapping[str, Quantization] | None, dtype: mx.Dtype) -> dict[str, int]:
    """Bytes one frame reads: weights of the temporal and the depth transformer, and keys and values of a full window."""
    lm = LmModel(cfg)
    lm.set_dtype(dtype)
    if packing:

        def predicate(path: str, module: nn.Module):
            q = packing.get(path)
            return False if q is None else {"group_size": q.group_size, "bits": q.bits, "mode": q.mode}

        nn.quantize(lm, class_predicate=predicate)
    # Nothing of it is evaluated: sizes follow from shapes.
    traffic = frame_traffic(lm)
    rings = memory.ring_bytes(cfg.transformer, 1, mx.bfloat16)
    return {"temporal": traffic.temporal, "depth": traffic.depth, "full_window": rings}


def chip_rows(read: Mapping[str, int]) -> list[dict[str, Any]]:
    """Milliseconds per frame that no kernel can beat, with an empty and with a full window, by chip."""
    weights = read["temporal"] + read["depth"]
    return [
        {
            "chip": chip,
            "bandwidth_gb_s": speed,
            "ms_empty_window": round(weights / speed / 1e6, 4),
            "ms_full_window": round((weights + read["full_window"]) / speed / 1e6, 4),
        }
        for chip, speed in BANDWIDTH.items()
    ]


def shown(report: Report) -> Iterable[str | Table]:
    """The report for a terminal: sentences and tables."""
    sizes = Table("", *_right("source", "result"))
    sizes.add_row("language model", gigabytes(report.source_bytes), gigabytes(report.result_bytes))
    sizes.add_row("bits per weight", "", f"{report.bits_per_weight:.2f}")
    before, after = report.frame_bytes["source"], report.frame_bytes["temporal"] + report.frame_bytes["depth"]
    sizes.add_row("weights read per frame", gigabytes(before), gigabytes(after))
    yield f"{report.source} -> {report.result} ({report.recipe})"
    yield sizes
    quality = Table("stream", *_right("KL (nats)", "top-1 equal"))
    for stream in report.streams:
        quality.add_row(stream.name, f"{stream.kl:.4g}", f"{stream.top1:.1%}")
    yield f"predictions against the source's on {report.codes}"
    yield quality
    worst = Table(Column("layer", overflow="fold"), "packing", *_right("relative error"))
    for row in sorted(report.layers, key=lambda r: -r["error"])[:8]:
        worst.add_row(row["layer"], row["packing"], f"{row['error']:.4f}")
    yield "layers with the largest error"
    yield worst
    chips = Table("chip", *_right("GB/s", "start", "full window"))
    for row in report.chips:
        times = [_milliseconds(row["ms_empty_window"]), _milliseconds(row["ms_full_window"])]
        chips.add_row(row["chip"], str(row["bandwidth_gb_s"]), *times)
    yield f"ms per frame, {LABEL}"
    yield chips
    if report.codec is not None:
        yield "codec: " + ", ".join(f"{k} {v}" for k, v in report.codec.items())


def _right(*titles: str) -> list[Column]:
    return [Column(title, justify="right") for title in titles]


def _milliseconds(value: float) -> str:
    return f"{value:.3g}{' (too slow)' if value > FRAME_MS else ''}"
