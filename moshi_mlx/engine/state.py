"""States as values: trees of dicts, lists and arrays (see `step` and `frame`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map


def copy_containers(state: Any) -> Any:
    """The same arrays in new dicts and lists. MLX never changes an array somebody still holds, so this is a copy of the value."""
    return tree_map(lambda array: array, state)


def let_go(state: Any) -> None:
    """Empty the containers of a state that has been stepped from.

    A step writes keys and values in place, unless somebody still holds the old rings when the new ones are evaluated; a variable
    of a caller further up would be such a somebody.
    """
    for value in state.values() if isinstance(state, dict) else state:
        if isinstance(value, (dict, list)):
            let_go(value)
    state.clear()


def put_rows(state: Any, rows: Any, at: Sequence[mx.array]) -> Any:
    """`state` with its rows `at` (each int32 `[1]`) replaced by those of `rows`, a state of the same kind with `len(at)` rows.

    Nothing else changes, and nothing new is made where the caller lets go of the old state. Keys and values `[2, B, H, S, D]` have
    their rows in axis 1, everything else in axis 0.
    """

    def put(old: mx.array | None, new: mx.array | None) -> mx.array | None:
        if old is None or new is None:
            return old
        axis = 1 if old.ndim == 5 else 0
        # A batch without its null rows takes the first ones only.
        for i, index in enumerate(at[: new.shape[axis]]):
            part = new[:, i : i + 1] if axis else new[i : i + 1]
            old = mx.slice_update(old, part.astype(old.dtype), index, (axis,))
        return old

    return tree_map(put, state, rows)
