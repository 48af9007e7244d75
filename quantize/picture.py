"""The report as a picture: error of every layer, divergence of every stream, lower bound of every chip."""

from __future__ import annotations

import io
from pathlib import Path

from moshi_mlx.errors import InputError
from moshi_mlx.machine.memory import gigabytes
from moshi_mlx.output import write_bytes

from .report import FRAME_MS, LABEL, Report


def require_matplotlib() -> None:
    """Said before the work rather than after it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "the report's picture needs matplotlib: pip install matplotlib, or leave it out with --no-picture."
        ) from None


def draw(report: Report, path: Path) -> None:
    """Write a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 12), layout="constrained")
    FigureCanvasAgg(figure)
    layers, streams, chips = figure.subplots(3, 1)
    figure.suptitle(
        f"{report.result}: {report.bits_per_weight:.2f} bits per weight, {gigabytes(report.result_bytes)} "
        f"(source {gigabytes(report.source_bytes)})"
    )
    kinds = sorted({row["packing"] for row in report.layers})
    for kind in kinds:
        points = [(i, row["error"]) for i, row in enumerate(report.layers) if row["packing"] == kind]
        layers.plot(*zip(*points, strict=True), ".", label=kind)
    layers.set_title("relative error of each packed layer, in the order of the model")
    layers.set_xlabel("layer")
    layers.set_ylim(0, 1.1 * max(row["error"] for row in report.layers) or 1)
    layers.legend()
    names = [s.name.replace("codebook ", "") for s in report.streams]
    streams.bar(names, [s.kl for s in report.streams], color="tab:blue")
    streams.set_ylabel("KL, nats")
    streams.set_title(f"divergence from the source (bars) and equal first choices (dots)\n{report.codes}", fontsize=9)
    agreement = streams.twinx()
    agreement.plot(names, [s.top1 for s in report.streams], "o", color="tab:orange")
    agreement.set_ylim(0, 1.05)
    agreement.set_ylabel("top-1 equal")
    rows = list(reversed(report.chips))
    chips.barh([r["chip"] for r in rows], [r["ms_full_window"] for r in rows], color="lightgray", label="full window")
    chips.barh([r["chip"] for r in rows], [r["ms_empty_window"] for r in rows], color="tab:green", label="start")
    if rows[-1]["ms_full_window"] > FRAME_MS / 10:
        chips.axvline(FRAME_MS, color="tab:red", linewidth=1, label="80 ms, real time")
    chips.set_title(f"ms per frame, {LABEL}", fontsize=9)
    chips.legend()
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_bytes(path, drawn.getvalue())
