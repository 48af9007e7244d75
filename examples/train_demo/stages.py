"""The names of the recipe's stages and sets of recordings, and what they need; imports nothing that takes long."""

import contextlib
from collections.abc import Iterator

from moshi_mlx.errors import MoshiError

# In the order in which they run.
STAGES = (
    "takes", "codec", "dialogues", "lm", "talks", "stt", "readings", "tts", "lm-more", "stt-more", "evaluate",
)  # fmt: skip
SETS = HEARD_SET, LEFT_OUT_SET, OWN_SET, READERS_SET = "heard", "left_out", "own", "readers"


@contextlib.contextmanager
def packages() -> Iterator[None]:
    """Around the import of what a stage needs: what is missing, and how it is installed."""
    try:
        yield
    except ModuleNotFoundError as e:
        if (e.name or "").startswith("examples"):
            raise
        advice = "pip install -e . -r examples/train_demo/requirements.txt"
        raise MoshiError(f"the recipe needs {e.name}; install it: {advice}") from None
