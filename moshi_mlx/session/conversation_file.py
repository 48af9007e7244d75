"""A conversation in a file: a session's state as safetensors, to go on another day or on another machine.

save_conversation(session, "talk.safetensors")
load_conversation(session, "talk.safetensors")     # a session with the same model; continues bit-identically
"""

from __future__ import annotations

import warnings
from pathlib import Path

from mlx.utils import tree_flatten, tree_map_with_path

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
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} does not exist; make it first.")
    save_weights(path, dict(tree_flatten(session.state)), {"format": FORMAT, "model": session.checkpoint.fingerprint})


def load_conversation(session: Session, path: str | Path) -> None:
    """Put `session` where the conversation in `path` was saved, by a session with the same model and options.

    Raises `CheckpointError` for a file that is damaged or of another model; the session is then where it was. Files of version
    1.0.0 do not say which model they belong to: a `UserWarning` does.
    """
    file = WeightsFile(Path(path))
    if file.metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a saved conversation; expected a file written by save_conversation.")
    model = file.metadata.get("model")
    if model is not None and model != session.checkpoint.fingerprint:
        raise CheckpointError(
            f"{path} was saved with another model than {session.checkpoint.files.source}, or with other weights of it (another precision)."
        )
    try:
        session.state = _tree(session.state, file)
    except InputError as e:
        raise CheckpointError(f"{path} cannot be continued by this session: {e}") from None
    except RuntimeError as e:
        raise CheckpointError(f"{path} cannot be read: {e}") from None
    if model is None:
        warnings.warn(
            f"{path} does not say which model it was saved with; if it was another, what follows makes no sense. Save it again.",
            stacklevel=2,
        )


def _tree(own: dict, file: WeightsFile) -> dict:
    """The arrays of `file`, not yet read, in the containers of the state `own`: names are looked up, never followed."""
    names = set(dict(tree_flatten(own)))
    odd = sorted(names ^ set(file))
    if odd:
        packed = odd[0].startswith("lm.trunk.layers.")
        hint = "; one of them packs its keys and values (kv_bits)" if packed else ""
        raise InputError(f"it was saved with another model or other options: {odd[0][:80]} is not on both sides{hint}.")
    return tree_map_with_path(lambda name, _: file.array(name), own)
