"""One check of a state that comes from outside, whole, before anything is replaced by it.

A state has to be one that these options could have left: its form, the sizes of its rings, positions that its rings can hold, tokens
within their tables, finite numbers. Whatever passes can be stepped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..errors import InputError
from ..modules import transformer
from .frame import FrameStep
from .row_state import Manner, init_state
from .state import copy_containers
from .step import Step
from .token_clock import UNGENERATED

# Three years of frames: draws are numbered by twice the position, in 32 bits.
MOST_STEPS = 1 << 30
_SLOTS = 3  # axis of a ring


def check_frame_state(frame: FrameStep, state: Any, batch: int) -> dict:
    """`state` of `batch` conversations as `frame` takes it, in new containers. Raises `InputError` for what it cannot be."""
    step, mimi = frame.step, frame.mimi
    parts = _parts(state, ("decoder", "encoder", "lm"), "the state")
    lm = check_step_state(step, parts["lm"], batch, decoded=True)
    steps = int(lm["offset"].item())
    for name, expected in (("encoder", mimi.init_encoder(batch)), ("decoder", mimi.init_decoder(batch))):
        part = _parts(parts[name], expected, name)
        # An end marker gives the rows of a translation's encoder their own clocks.
        if name == "encoder" and _positions_shape(part) == (batch,):
            expected = mimi.init_encoder(batch, lockstep=False)
        _same_form(expected, part, name)
        _check_finite(part, name)
        stride = mimi.cfg.stride
        position = np.array(part["transformer"]["position"])
        if (position < 0).any() or (position > stride * steps).any() or (position % stride).any():
            raise InputError(
                f"{name}.transformer.position should be a multiple of {stride} from 0 to {stride * steps}, found {_some(position)}."
            )
    return copy_containers({**parts, "lm": lm})


def check_step_state(
    step: Step,
    state: Any,
    batch: int,
    lockstep: bool = True,
    decoded: bool = False,
    manners: Sequence[Manner] | None = None,
) -> dict:
    """`state` of `batch` conversations as `step` takes it, in new containers, its rings of a size that they go through.

    `decoded`: the model's own codes go to a codec, which knows no special tokens. `manners`: those of rows that have some. Raises
    `InputError` for what it cannot be.
    """
    capacity = step.capacities(batch)[0]
    expected = step.init_state([0] * batch, capacity) if lockstep else init_state(step, [0] * batch, capacity, manners)
    parts = _parts(state, expected, "lm")
    capacity = _check_rings(expected["trunk"], parts["trunk"])
    _same_form(
        {k: v for k, v in expected.items() if k != "trunk"}, {k: v for k, v in parts.items() if k != "trunk"}, "lm"
    )
    _check_finite(parts["trunk"], "lm.trunk")
    offset = np.array(parts["offset"])
    if (offset < 0).any() or (offset > MOST_STEPS).any():
        raise InputError(f"lm.offset should be from 0 to {MOST_STEPS}, found {_some(offset)}.")
    position = np.array(parts["trunk"]["position"])
    if not np.array_equal(
        position.reshape(-1, offset.size), np.broadcast_to(offset, (position.size // offset.size, offset.size))
    ):
        raise InputError(f"lm.trunk.position should be lm.offset, found {_some(position)} and {_some(offset)}.")
    limit = step.lm.transformer.capacity()
    whole = limit is not None and capacity == limit
    if not whole and (capacity < offset.max() or (limit is not None and capacity > limit)):
        raise InputError(
            f"the rings of lm.trunk have {capacity} slots, which {_some(offset)} positions cannot have left with a window of "
            f"{'any length' if limit is None else f'{limit} frames'}; was it saved with another context?"
        )
    _check_tokens(step, np.array(parts["tokens"]), offset, decoded)
    return {**copy_containers(parts), "trunk": _usual_size(step, copy_containers(parts["trunk"]), batch)}


# Form ---------------------------------------------------------------------------------------------------------------


def _parts(found: Any, expected: Any, name: str) -> dict:
    """`found` as a dict with the keys of `expected`."""
    if not isinstance(found, dict):
        raise InputError(f"{name} should be a dict with {', '.join(sorted(expected))}, found {type(found).__name__}.")
    odd = sorted(map(str, set(expected) ^ set(found)))
    if odd:
        lacks = odd[0] in set(map(str, expected))
        raise InputError(
            f"{name} {'lacks' if lacks else 'has the unknown part'} {odd[0][:60]!r}: it is the state of something else."
        )
    return found


def _same_form(expected: Any, found: Any, name: str, slots: int | None = None) -> None:
    """The same containers, and arrays of the same shapes and types; `slots`: what stands for the slots of every ring."""
    if isinstance(expected, dict):
        for key, part in _parts(found, expected, name).items():
            _same_form(expected[key], part, f"{name}.{key}", slots)
    elif isinstance(expected, list):
        if not isinstance(found, list) or len(found) != len(expected):
            count = len(found) if isinstance(found, list) else type(found).__name__
            raise InputError(
                f"{name} should be a list of {len(expected)}, found {count}: it is the state of something else."
            )
        for i, part in enumerate(found):
            _same_form(expected[i], part, f"{name}.{i}", slots)
    else:
        if not isinstance(found, mx.array):
            raise InputError(f"{name} should be an array of MLX, found {type(found).__name__}.")
        shape = list(expected.shape)
        if slots is not None:
            shape[_SLOTS] = slots
        if list(found.shape) != shape or found.dtype != expected.dtype:
            raise InputError(
                f"{name} should be {shape} {_type(expected)}, found {list(found.shape)} {_type(found)}: it is the state of another model or "
                "of other options."
            )


def _check_rings(expected: dict, found: Any) -> int:
    """The trunk's form, whose rings have all the same number of slots, whatever it is: that number."""
    parts = _parts(found, expected, "lm.trunk")
    _same_form(expected["position"], parts["position"], "lm.trunk.position")
    layers = parts["layers"] if isinstance(parts["layers"], list) else []
    for ring, own in zip(layers, expected["layers"], strict=False):
        if _bits(ring) != _bits(own):
            raise InputError(
                f"its keys and values are {_stored(ring, own)}, here they are {_stored(own, ring)}: make the session with the same kv_bits."
            )
    capacity = _slots(layers[0]) if layers else 0
    _same_form(expected["layers"], parts["layers"], "lm.trunk.layers", capacity)
    if capacity < 1:
        raise InputError("the rings of lm.trunk have no slots.")
    return capacity


def _slots(ring: Any) -> int:
    array = ring.get("packed") if isinstance(ring, dict) else ring
    return array.shape[_SLOTS] if isinstance(array, mx.array) and array.ndim > _SLOTS else 0


def _bits(ring: Any) -> int | None:
    """What tells packed keys and values of 8 bits from those of 4, None for whole ones; 0 for what is neither."""
    if not isinstance(ring, dict):
        return None
    packed, scales = ring.get("packed"), ring.get("scales")
    if not isinstance(packed, mx.array) or not isinstance(scales, mx.array) or not packed.ndim or not scales.ndim:
        return 0
    return packed.shape[-1] // max(scales.shape[-1], 1)


def _stored(ring: Any, other: Any) -> str:
    if not isinstance(ring, dict):
        return "stored whole"
    return "packed otherwise" if isinstance(other, dict) else "packed"


# Values -------------------------------------------------------------------------------------------------------------


def _check_tokens(step: Step, tokens: np.ndarray, offset: np.ndarray, decoded: bool) -> None:
    """`tokens [B, K, columns]` (see `TokenClock`) within their tables, or -2 and -1."""
    clock, cfg = step.clock, step.lm.cfg
    rows = cfg.text_in_vocab_size
    texts = rows * (rows + 1) if cfg.demux_second_stream else rows
    last = np.array([texts - 1] + [cfg.card] * cfg.n_q)[:, None]
    if ((tokens < UNGENERATED) | (tokens > last)).any():
        bad = tokens[(tokens < UNGENERATED) | (tokens > last)][0]
        raise InputError(f"lm.tokens holds the token {bad}; text is -2 .. {texts - 1} and codes are -2 .. {cfg.card}.")
    if not decoded:
        return
    now, delays = offset.reshape(-1, 1, 1), np.array(cfg.delays)[:, None]
    column = np.arange(clock.columns)
    position = now - clock.max_delay + column
    own = np.arange(clock.channels)[:, None]
    spoken = (own >= 1) & (own <= clock.generated) & (column > delays) & (position > delays) & (position <= now)
    wrong = spoken & ((tokens < 0) | (tokens >= cfg.card))
    if wrong.any():
        raise InputError(
            f"lm.tokens holds {tokens[wrong][0]} where a code of the next frames should be, 0 .. {cfg.card - 1}."
        )


def _check_finite(tree: Any, name: str) -> None:
    for path, array in dict(tree_flatten(tree)).items():
        if mx.issubdtype(array.dtype, mx.floating) and not mx.all(mx.isfinite(array)).item():
            raise InputError(f"{name}.{path} holds NaN or infinity.")


def _usual_size(step: Step, trunk: dict, batch: int) -> dict:
    """Rings as large as those that have been compiled for."""
    capacity, sizes = transformer.capacity_of(trunk), step.capacities(batch)
    usual = next((s for s in sizes if s >= capacity), capacity)
    return trunk if usual == capacity else transformer.grow(trunk, usual)


def _positions_shape(part: dict) -> tuple[int, ...] | None:
    stack = part.get("transformer")
    found = stack.get("position") if isinstance(stack, dict) else None
    return found.shape if isinstance(found, mx.array) else None


def _some(values: np.ndarray) -> str:
    flat = values.reshape(-1)
    return ", ".join(map(str, flat[:4].tolist())) + (" ..." if flat.size > 4 else "")


def _type(array: mx.array) -> str:
    return str(array.dtype).removeprefix("mlx.core.")
