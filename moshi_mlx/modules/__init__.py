"""Bricks the models are built from. Modules hold weights; whatever changes over time is a value passed in and out.

Files and classes that scripts of the published package name are handed on.
"""

from ..lazy import hand_on

_HOMES = {
    "SeanetConfig": ".seanet",
    "SeanetDecoder": ".seanet",
    "SeanetEncoder": ".seanet",
    "Transformer": ".transformer",
    "TransformerConfig": ".transformer",
    "conditioner": ".conditioner",
    "conv": ".conv",
    "kv_cache": ".kv_cache",
    "quantization": ".quantization",
    "seanet": ".seanet",
    "transformer": ".transformer",
}
__getattr__ = hand_on(__name__, __package__, _HOMES)
