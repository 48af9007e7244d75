"""States as values: trees of dicts, lists and arrays (see `step` and `frame`)."""

from __future__ import annotations

from typing import Any

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
