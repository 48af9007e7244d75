"""What counts as sound, at every door: floats of about -1..1, or whole numbers scaled by their type.

What is no number must not reach a model: one NaN stays in its state for as long as its memory reaches.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError

# 18 dB above full scale, more than any recording: beyond are whole numbers that were made floats, or nonsense.
LOUDEST = 8.0
# Whole numbers of these types are samples; the value that is full scale.
FULL_SCALE = {"int8": 128, "int16": 32768, "int32": 2147483648}


def as_samples(sound: Any) -> np.ndarray:
    """`sound` as float32 of the same shape: floats as they are, int8, int16 and int32 divided by their full scale, uint8 around 128.

    Raises `InputError` for anything else. Values are not looked at; see `refuse_nonsense`.
    """
    try:
        # NumPy has no type for bfloat16, MLX's usual one.
        x = np.asarray(sound.tolist() if "bfloat16" in str(getattr(sound, "dtype", "")) else sound)
    except Exception:
        raise InputError(f"sound should be an array of samples, found {type(sound).__name__}.") from None
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):
            x = x.astype(np.float32, copy=False)
        # MLX takes no array that runs backwards.
        return x if x.flags.c_contiguous else x.copy()
    if x.dtype.name in FULL_SCALE:
        return x.astype(np.float32) / np.float32(FULL_SCALE[x.dtype.name])
    if x.dtype == np.uint8:
        return (x.astype(np.float32) - 128) / 128
    raise InputError(
        f"sound should be floats in -1..1 or whole numbers of type {', '.join(FULL_SCALE)} or uint8, found the type {x.dtype}."
    )


def refuse_nonsense(x: np.ndarray) -> np.ndarray:
    """`x` float32, if every sample is a number and none is far above full scale; else `InputError`."""
    peak = float(np.abs(x).max(initial=0))
    if np.isfinite(peak) and peak <= LOUDEST:
        return x
    if np.isfinite(peak):
        raise InputError(
            f"samples should be floats in -1..1, found {peak:g}: divide whole numbers by their full scale (16 bits: 32768), or hand them "
            "over as int16."
        )
    raise InputError("samples should be numbers, found NaN or infinity; put silence (0) in their place.")


def as_block(sound: Any) -> np.ndarray:
    """`sound` of any length as float32 `[n]`; as `as_samples`, values are not looked at."""
    x = as_samples(sound)
    if x.ndim != 1:
        raise InputError(f"samples should have shape [n], found {list(x.shape)}.")
    return x


def as_frame(sound: Any, size: int) -> np.ndarray:
    """One frame of `size` samples as float32 `[size]`; what is none, or no sound, is an `InputError`."""
    x = as_samples(sound)
    if x.shape != (size,):
        raise InputError(f"a step takes {size} samples, found {list(x.shape)}.")
    return refuse_nonsense(x)


def usable(x: np.ndarray) -> tuple[np.ndarray, int]:
    """What a device delivered, float32: silence for what is no number, within -1..1; and how many were none."""
    finite = np.isfinite(x)
    invalid = 0
    if not finite.all():
        invalid = int((~finite).sum())
        x = np.where(finite, x, 0)
    return np.clip(x, -1, 1), invalid
