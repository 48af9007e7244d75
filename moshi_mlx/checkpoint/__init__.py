"""From the name of a checkpoint to loaded models: finding its files, reading them, checking them, filling modules."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from .loader import DTYPES as DTYPES
    from .loader import Checkpoint as Checkpoint
    from .loader import Estimate as Estimate
    from .loader import Loader as Loader
    from .loader import default_dtype as default_dtype
    from .loader import load as load
    from .loader import load_tokenizer as load_tokenizer
    from .model_files import lm_plan as lm_plan
    from .model_files import load_lm_file as load_lm_file
    from .model_files import load_mimi_file as load_mimi_file
    from .model_files import read_eos_as_pad as read_eos_as_pad

_LOADER = ("DTYPES", "Checkpoint", "Estimate", "Loader", "default_dtype", "load", "load_tokenizer")
_MODEL_FILES = ("lm_plan", "load_lm_file", "load_mimi_file", "read_eos_as_pad")
_HOMES = {**dict.fromkeys(_LOADER, ".loader"), **dict.fromkeys(_MODEL_FILES, ".model_files")}
__getattr__ = hand_on(__name__, __package__, _HOMES)
