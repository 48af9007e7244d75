"""Bytes a frame reads from memory: on a fast chip the weights' bytes are the time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.nn as nn
from mlx.utils import tree_flatten

from .lm_model import LmModel
from .mimi_model import MimiModel


@dataclass(frozen=True)
class Traffic:
    """Bytes per frame of one conversation; a batch reads the weights once."""

    temporal: int
    depth: int
    codec: int
    rings: int

    @property
    def total(self) -> int:
        return self.temporal + self.depth + self.codec + self.rings


def frame_traffic(
    lm: LmModel, mimi: MimiModel | None = None, generated: int | None = None, ring_bytes: int = 0
) -> Traffic:
    """Weights read by one frame that generates `generated` codebooks (default: all), and `ring_bytes` of keys and values.

    Of embedding tables only rows are read, which is nothing beside the rest.
    """
    slices = lm.depformer.slices[:generated]
    temporal = sum(_bytes(m) for m in (lm.transformer, lm.text_linear, lm.out_norm, lm.extra_heads))
    depth = sum(_bytes(part) for s in slices for part in (s.linear_in, s.linear_out, s.transformer))
    codec = 0
    if mimi is not None:
        codec = sum(_bytes(m) for m in (mimi.encoder, mimi.encoder_transformer, mimi.downsample, mimi.quantizer))
        codec += sum(_bytes(m) for m in (mimi.upsample, mimi.decoder_transformer, mimi.decoder))
    return Traffic(temporal, depth, codec, ring_bytes)


def _bytes(module: nn.Module | list) -> int:
    return sum(a.nbytes for a in _arrays(module))


def _arrays(module: nn.Module | list) -> Iterator:
    parameters = module.parameters() if isinstance(module, nn.Module) else [m.parameters() for m in module]
    yield from dict(tree_flatten(parameters)).values()
