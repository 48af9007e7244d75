"""`/metrics`, for Prometheus (text format 0.0.4): each figure once for every kind of model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .services import Services

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class Counts:
    """What all streams of a kind together have come to."""

    streams: int = 0
    frames: int = 0
    late: int = 0
    refused: int = 0
    bytes_skipped: int = 0


def text(services: Services, counts: Mapping[str, Counts]) -> str:
    """Everything that is counted, each with what it means. `counts` by kind."""
    seen = [(s, s.scheduler.figures(), counts.get(s.kind, Counts())) for s in services]

    def each(value) -> list[tuple[str, float]]:
        return [(f'{{kind="{s.kind}"}}', value(s, figures, count)) for s, figures, count in seen]

    entries = [
        ("frames_total", "counter", "80 ms frames answered, of all streams", each(lambda s, f, c: c.frames)),
        ("late_frames_total", "counter", "frames behind which a whole further one already waited", each(lambda s, f, c: c.late)),
        ("dropped_input_samples_total", "counter", "samples of users given up because the model was late", each(lambda s, f, c: f.dropped_in)),
        ("dropped_output_frames_total", "counter", "frames given up because a client did not read", each(lambda s, f, c: f.dropped_out)),
        ("skipped_bytes_total", "counter", "bytes of clients that were no whole Ogg page", each(lambda s, f, c: c.bytes_skipped)),
        ("streams_total", "counter", "sockets opened and requests begun", each(lambda s, f, c: c.streams)),
        ("refused_total", "counter", "clients refused before they began", each(lambda s, f, c: c.refused)),
        ("steps_total", "counter", "steps of the model, each for all rows that had a frame", each(lambda s, f, c: f.steps)),
        ("running", "gauge", "1 while the model answers, 0 once it has stopped", each(lambda s, f, c: s.scheduler.running)),
        ("rows", "gauge", "streams that can be served at once", each(lambda s, f, c: s.scheduler.rows)),
        ("rows_in_use", "gauge", "streams being served", each(lambda s, f, c: f.live)),
        ("waiting", "gauge", "clients in the queue", each(lambda s, f, c: f.waiting)),
        ("worst_wait_seconds", "gauge", "longest that a frame has waited for its step", each(lambda s, f, c: f.worst_wait)),
    ]  # fmt: skip
    lines = [line for entry in entries for line in _lines(*entry)]
    steps = [
        (f'{{kind="{s.kind}",quantile="{quantile}"}}', value)
        for s, f, _ in seen
        for quantile, value in (("0.5", f.p50), ("0.95", f.p95), ("1", f.longest))
    ]
    lines += _lines("step_seconds", "gauge", "seconds of a step, of the last thousand", steps)
    return "\n".join(lines) + "\n"


def _lines(name: str, kind: str, meaning: str, values: Iterable[tuple[str, float]]) -> list[str]:
    head = [f"# HELP moshi_{name} {meaning}", f"# TYPE moshi_{name} {kind}"]
    return head + [f"moshi_{name}{labels} {value:.9g}" for labels, value in values]
