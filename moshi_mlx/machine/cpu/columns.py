"""Which arrays the CPU backend keeps column by column (see `models.packed.lay_out_for_cpu`)."""

from __future__ import annotations

import mlx.core as mx
import numpy as np


def by_columns(array: mx.array) -> bool:
    """Whether a matrix is stored as its transpose and seen through a view. Never on a GPU, where nothing is."""
    if mx.default_device() != mx.cpu or array.ndim != 2:
        return False
    seen = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, copy=False)
    return seen.flags.f_contiguous and not seen.flags.c_contiguous
