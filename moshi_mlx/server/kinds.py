"""Messages of `/api/chat`: one byte that says the kind, then the payload (docs/spec/protocol.md, "Messages")."""

from __future__ import annotations

import json
import struct
from typing import Any

HANDSHAKE, AUDIO, TEXT, CONTROL, METADATA, ERROR, PING = range(7)
PROTOCOL_VERSION = MODEL_VERSION = 0


def handshake() -> bytes:
    """Versions of protocol and model, as the Rust server sends them; shorter forms mean the same."""
    return struct.pack("<BII", HANDSHAKE, PROTOCOL_VERSION, MODEL_VERSION)


def audio(payload: bytes) -> bytes:
    return bytes([AUDIO]) + payload


def text(words: str) -> bytes:
    return bytes([TEXT]) + words.encode()


def error(sentence: str) -> bytes:
    return bytes([ERROR]) + sentence.encode()


def metadata(fields: dict[str, Any]) -> bytes:
    return bytes([METADATA]) + json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
