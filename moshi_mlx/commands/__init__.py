"""What every command shares, and the work of each: `moshi_mlx/X.py` holds the arguments of `python -m moshi_mlx.X`, `commands/X.py` does what
they ask for. It is imported when they are right, with MLX and all else that takes long.

`running` is how a command begins and ends, `flags` the arguments that several take, `loading` a checkpoint made of them, `telling` what is said.
"""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from .flags import AS_PUBLISHED as AS_PUBLISHED
    from .flags import TALKERS as TALKERS
    from .flags import Parser as Parser
    from .flags import add_checkpoint_arguments as add_checkpoint_arguments
    from .flags import add_precision_arguments as add_precision_arguments
    from .flags import add_prompt_arguments as add_prompt_arguments
    from .flags import add_raw_format as add_raw_format
    from .flags import add_sampling_arguments as add_sampling_arguments
    from .flags import add_server_arguments as add_server_arguments
    from .flags import first as first
    from .flags import refuse_overwriting as refuse_overwriting
    from .flags import sample_rate as sample_rate
    from .flags import temperature as temperature
    from .loading import announce as announce
    from .loading import check_checkpoint as check_checkpoint
    from .loading import check_kind as check_kind
    from .loading import load as load
    from .loading import samplers as samplers
    from .loading import share as share
    from .running import importing as importing
    from .running import run as run
    from .telling import console as console
    from .telling import say as say

_HOMES = {
    "AS_PUBLISHED": ".flags",
    "Parser": ".flags",
    "TALKERS": ".flags",
    "add_checkpoint_arguments": ".flags",
    "add_precision_arguments": ".flags",
    "add_prompt_arguments": ".flags",
    "add_raw_format": ".flags",
    "add_sampling_arguments": ".flags",
    "add_server_arguments": ".flags",
    "announce": ".loading",
    "check_checkpoint": ".loading",
    "check_kind": ".loading",
    "console": ".telling",
    "first": ".flags",
    "importing": ".running",
    "load": ".loading",
    "refuse_overwriting": ".flags",
    "run": ".running",
    "sample_rate": ".flags",
    "samplers": ".loading",
    "say": ".telling",
    "share": ".loading",
    "temperature": ".flags",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
