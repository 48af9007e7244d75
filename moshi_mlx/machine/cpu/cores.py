"""All cores for MLX's CPU backend, which runs the operations of a stream one after another on one thread.

Products with packed weights are scalar code there and all the time a large model takes: `packed_product` cuts one by rows and runs the pieces
on as many streams, to the same numbers.
"""

from __future__ import annotations

import os
import sys
import threading

import mlx.core as mx

from ..streams import more

# Pieces of fewer weights are not worth a second thread: a weight takes about a nanosecond.
SMALLEST_PIECE = 1 << 19
# The tenth reader of one memory adds nothing.
MOST_STREAMS = 8

_local = threading.local()


def streams() -> list[mx.Stream | None]:
    """Where operations of this thread may run: the default stream (None) and one more for each further core."""
    if not hasattr(_local, "more"):
        _local.more = more(min(_cores(), MOST_STREAMS) - 1)
    return [None, *_local.more]


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def packed_product(
    x: mx.array, weight: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int, mode: str
) -> mx.array:
    """`x [..., columns]` times a packed matrix `[rows, columns]` -> `[..., rows]`."""

    def of(w: mx.array, s: mx.array, b: mx.array | None, stream: mx.Stream | None) -> mx.array:
        return mx.quantized_matmul(
            x, w, s, b, transpose=True, group_size=group_size, bits=bits, mode=mode, stream=stream
        )

    available = streams()
    count = min(len(available), weight.size * 32 // bits // SMALLEST_PIECE)
    if count < 2:
        return of(weight, scales, biases, None)
    pieces = []
    for i, stream in enumerate(available[:count]):
        rows = slice(weight.shape[0] * i // count, weight.shape[0] * (i + 1) // count)
        pieces.append(of(weight[rows], scales[rows], None if biases is None else biases[rows], stream))
    return mx.concatenate(pieces, axis=-1)
