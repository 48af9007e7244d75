"""Import path of the published package; the language model is in `lm_model`, its published surface in `compat`."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..compat.configurations import DepFormerConfig as DepFormerConfig
    from ..compat.configurations import LmConfig as LmConfig
    from ..compat.configurations import TransformerConfig as TransformerConfig
    from ..compat.configurations import config1b_202412 as config1b_202412
    from ..compat.configurations import config1b_202412_16rvq as config1b_202412_16rvq
    from ..compat.configurations import config_helium_1_preview_2b as config_helium_1_preview_2b
    from ..compat.configurations import config_v0_1 as config_v0_1
    from ..compat.lm import Lm as Lm
    from ..compat.lm import ScaledEmbedding as ScaledEmbedding
    from .lm_model import DepFormer as DepFormer
    from .lm_model import DepFormerSlice as DepFormerSlice
    from .lm_model import LmModel as LmModel

_HOMES = {
    "config1b_202412": "..compat.configurations",
    "config1b_202412_16rvq": "..compat.configurations",
    "config_helium_1_preview_2b": "..compat.configurations",
    "config_v0_1": "..compat.configurations",
    "Lm": "..compat.lm",
    "ScaledEmbedding": "..compat.lm",
    "DepFormerConfig": "..compat.configurations",
    "LmConfig": "..compat.configurations",
    "TransformerConfig": "..compat.configurations",
    "DepFormer": ".lm_model",
    "DepFormerSlice": ".lm_model",
    "LmModel": ".lm_model",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
