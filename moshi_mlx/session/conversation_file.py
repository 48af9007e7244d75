"""A conversation in a file: a session's state as safetensors, to go on another day or on another machine.

save_conversation(session, "talk.safetensors")
load_conversation(session, "talk.safetensors")     # a session with the same model; continues bit-identically
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_unflatten

from ..checkpoint.weights_file import WeightsFile
from ..checkpoint.weights_writer import save_weights
from ..errors import CheckpointError, InputError
from .session import Session

FORMAT = "moshi_mlx conversation 1"


def save_conversation(session: Session, path: str | Path) -> None:
    """Write the present moment of a conversation. The file holds what was said and heard as the model remembers it."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} should end in .safetensors.")
    save_weights(path, dict(tree_flatten(session.state)), {"format": FORMAT})


def load_conversation(session: Session, path: str | Path) -> None:
    """Put `session` where the conversation in `path` was saved. The models have to be of the same shape."""
    file = WeightsFile(Path(path))
    if file.metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a saved conversation; expected a file written by save_conversation.")
    state: Any = tree_unflatten([(name, file.array(name)) for name in file])
    _check(session, state, path)
    mx.eval(state)
    session.state = state


def _check(session: Session, state: dict, path: str | Path) -> None:
    """Ring sizes grow while talking; everything else has the shape of the session's own state."""
    own, found = dict(tree_flatten(session.state)), dict(tree_flatten(state))
    if own.keys() != found.keys():
        odd = sorted(own.keys() ^ found.keys())[0]
        raise CheckpointError(f"{path} was saved with another model or other options: {odd} is not on both sides.")
    for name, array in own.items():
        other = found[name]
        growing = name.startswith("lm.trunk.layers.")
        same = array.ndim == other.ndim and all(
            a == b or (growing and axis == array.ndim - 2)
            for axis, (a, b) in enumerate(zip(array.shape, other.shape, strict=True))
        )
        if not same or array.dtype != other.dtype:
            raise CheckpointError(
                f"{path} was saved with another model: {name} is {list(other.shape)} {other.dtype}, "
                f"this session's is {list(array.shape)} {array.dtype}."
            )
