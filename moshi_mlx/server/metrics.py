"""`/metrics`, for Prometheus (text format 0.0.4)."""

from __future__ import annotations

from ..engine.scheduler import Figures
from .chat import Counts

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def text(figures: Figures, rows: int, counts: Counts) -> str:
    """Everything that is counted, each with what it means."""
    entries = [
        ("frames_total", "counter", "80 ms frames answered, of all talks", counts.frames),
        ("late_frames_total", "counter", "frames behind which a whole further one already waited", counts.late),
        ("dropped_input_samples_total", "counter", "samples of users given up because the model was late", figures.dropped_in),
        ("dropped_output_frames_total", "counter", "frames given up because a client did not read", figures.dropped_out),
        ("skipped_bytes_total", "counter", "bytes of clients that were no whole Ogg page", counts.bytes_skipped),
        ("talks_total", "counter", "sockets opened for a talk", counts.talks),
        ("refused_total", "counter", "talks refused before their socket was opened", counts.refused),
        ("steps_total", "counter", "steps of the model, each for all rows that had a frame", figures.steps),
        ("rows", "gauge", "talks that can be held at once", rows),
        ("rows_in_use", "gauge", "talks being held", figures.live),
        ("waiting", "gauge", "talkers in the queue", figures.waiting),
        ("worst_wait_seconds", "gauge", "longest that a frame has waited for its step", figures.worst_wait),
    ]  # fmt: skip
    lines = []
    for name, kind, meaning, value in entries:
        lines += [f"# HELP moshi_{name} {meaning}", f"# TYPE moshi_{name} {kind}", f"moshi_{name} {value:g}"]
    lines += ["# HELP moshi_step_seconds seconds of a step, of the last thousand", "# TYPE moshi_step_seconds gauge"]
    for quantile, value in (("0.5", figures.p50), ("0.95", figures.p95), ("1", figures.longest)):
        lines.append(f'moshi_step_seconds{{quantile="{quantile}"}} {value:.6f}')
    return "\n".join(lines) + "\n"
