"""Messages of the Rust server: MessagePack maps with string keys and the variant's name under `type` (docs/spec/speech-sockets.md)."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from ...errors import InputError

LARGEST_MESSAGE = 16 << 20
# Two minutes of sound are one message at most.
LONGEST_ARRAY = 120 * 24000
READY = {"type": "Ready"}


class BadMessage(InputError):
    """What a client sent is none of the protocol's messages."""


def pack(message: dict[str, Any], single: bool = False) -> bytes:
    """`single`: floats in single precision, for sound; times have both words."""
    return msgpack.packb(message, use_single_float=single)


def error(sentence: str) -> bytes:
    return pack({"type": "Error", "message": sentence})


def unpack(data: bytes) -> tuple[str, dict[str, Any]]:
    """The variant and the map. Raises `BadMessage`."""
    try:
        message = msgpack.unpackb(data, raw=False, max_array_len=LONGEST_ARRAY, max_map_len=64, strict_map_key=True)
    except Exception as e:
        # Its unpacker raises a dozen kinds.
        raise BadMessage(f"a message should be a MessagePack map ({type(e).__name__}).") from None
    kind = message.get("type") if isinstance(message, dict) else None
    if not isinstance(kind, str):
        raise BadMessage("a message should be a MessagePack map with its `type`.")
    return kind, message


def floats(message: dict[str, Any], key: str) -> np.ndarray:
    """An array of numbers, whole ones too, as float32 `[n]`."""
    found = message.get(key)
    if not isinstance(found, list):
        raise BadMessage(f"{message['type']} should have an array `{key}`.")
    try:
        # Booleans and texts would be taken for numbers.
        array = np.asarray(found)
        if found and (array.ndim != 1 or array.dtype.kind not in "fiu"):
            raise ValueError
        return array.astype(np.float32)
    except (ValueError, TypeError, OverflowError):
        raise BadMessage(f"`{key}` of {message['type']} should hold numbers only.") from None


def octets(message: dict[str, Any], key: str) -> bytes:
    """Bytes, which the Rust server writes as an array of whole numbers."""
    found = message.get(key)
    if isinstance(found, bytes):
        return found
    try:
        return bytes(found if isinstance(found, list) else None)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        raise BadMessage(f"{message['type']} should have bytes, or an array of them, as `{key}`.") from None


def text(message: dict[str, Any], key: str) -> str:
    found = message.get(key)
    if not isinstance(found, str):
        raise BadMessage(f"{message['type']} should have a text `{key}`.")
    return found


def whole(message: dict[str, Any], key: str) -> int:
    """A number of 64 bits."""
    found = message.get(key)
    if not isinstance(found, int) or isinstance(found, bool) or not -(2**63) <= found < 2**63:
        raise BadMessage(f"{message['type']} should have a whole number `{key}` of 64 bits.")
    return found


def shape(message: dict[str, Any], count: int) -> list[int]:
    """The `shape` of `count` values."""
    found = message.get("shape")
    if not isinstance(found, list) or not 1 <= len(found) <= 3 or not all(type(n) is int and n > 0 for n in found):
        raise BadMessage(f"{message['type']} should have a `shape` of up to three whole numbers.")
    if int(np.prod(found, dtype=object)) != count:
        raise BadMessage(f"the shape {found} of {message['type']} is not that of {count} values.")
    return found
