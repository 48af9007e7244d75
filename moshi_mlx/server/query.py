"""What a client asks for in the query of `/api/chat` (docs/spec/protocol.md, "Query").

Unknown parameters are ignored; a value that a known one cannot have is a `BadQuery`, told before the socket is opened.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import InputError
from ..modules.repetition import LONGEST_CONTEXT
from ..modules.sampling import MOST_KEPT
from .opus import PCM_TYPES

T = TypeVar("T")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", re.ASCII)
WHOLE = re.compile(r"[+-]?[0-9]{1,20}", re.ASCII)
VOICE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,63})(\.pt|\.safetensors|\.wav)?", re.ASCII)
LONGEST_ROLE = 4000
HIGHEST_TEMPERATURE, LARGEST_BIAS = 10.0, 100.0
LEAST_PENALTY, LARGEST_PENALTY = 0.1, 10.0


class BadQuery(InputError):
    """A value that a parameter cannot have."""


@dataclass(frozen=True)
class Wishes:
    """One talk as its client wants it; None where it left the choice to the server. `role` may be empty: no role."""

    audio: str = "opus"
    wait: bool = True
    figures: bool = False
    text_temperature: float | None = None
    audio_temperature: float | None = None
    text_topk: int | None = None
    audio_topk: int | None = None
    text_seed: int | None = None
    audio_seed: int | None = None
    pad_bias: float | None = None
    repetition_penalty: float | None = None
    repetition_context: int | None = None
    voice: str | None = None
    role: str | None = None

    @property
    def asked_for_metadata(self) -> bool:
        """Whether the client knows our extensions, and so the messages that tell of them."""
        return self.audio != "opus" or self.figures


def parse(query: Mapping[str, str]) -> Wishes:
    """Raises `BadQuery`. Parameters that belong to other models or say who asks are not looked at."""

    def get(name: str, read: Callable[[str, str], T]) -> T | None:
        return read(name, query[name]) if name in query else None

    seed = get("seed", _whole(-1, 2**64 - 1))
    shared = None if seed == -1 else seed
    text_seed, audio_seed = get("text_seed", _whole(0, 2**64 - 1)), get("audio_seed", _whole(0, 2**64 - 1))
    # Of programs that cut their talks short; ours have no end.
    get("max_steps", _whole(0, 2**64 - 1))
    penalty = get("repetition_penalty", _number(LEAST_PENALTY, LARGEST_PENALTY))
    context = get("repetition_penalty_context", _whole(0, LONGEST_CONTEXT))
    wait, figures = get("wait", _flag), get("figures", _flag)
    return Wishes(
        audio=get("audio", _audio) or "opus",
        wait=True if wait is None else wait,
        figures=bool(figures),
        text_temperature=get("text_temperature", _number(0.0, HIGHEST_TEMPERATURE)),
        audio_temperature=get("audio_temperature", _number(0.0, HIGHEST_TEMPERATURE)),
        text_topk=get("text_topk", _whole(0, MOST_KEPT)),
        audio_topk=get("audio_topk", _whole(0, MOST_KEPT)),
        text_seed=shared if text_seed is None else text_seed,
        audio_seed=shared if audio_seed is None else audio_seed,
        pad_bias=get("pad_mult", _number(-LARGEST_BIAS, LARGEST_BIAS)),
        # Both or none.
        repetition_penalty=None if context is None else penalty,
        repetition_context=None if penalty is None else context,
        voice=get("voice_prompt", _voice),
        role=get("text_prompt", _role),
    )


def seed_of(query: Mapping[str, str]) -> int | None:
    """The `seed` of a client that wants the same again; None, or -1, for another each time. Raises `BadQuery`."""
    seed = _whole(-1, 2**64 - 1)("seed", query["seed"]) if "seed" in query else -1
    return None if seed == -1 else seed


def _number(least: float, most: float) -> Callable[[str, str], float]:
    def read(name: str, text: str) -> float:
        value = float(text) if NUMBER.fullmatch(text) else None
        if value is None or not least <= value <= most:
            raise BadQuery(f"{name} should be a number from {least:g} to {most:g}, found {_shown(text)}.")
        return value

    return read


def _whole(least: int, most: int) -> Callable[[str, str], int]:
    def read(name: str, text: str) -> int:
        value = int(text) if WHOLE.fullmatch(text) else None
        if value is None or not least <= value <= most:
            raise BadQuery(f"{name} should be a whole number from {least} to {most}, found {_shown(text)}.")
        return value

    return read


def _flag(name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise BadQuery(f"{name} should be 0 or 1, found {_shown(text)}.")
    return text == "1"


def _audio(name: str, text: str) -> str:
    if text not in PCM_TYPES:
        raise BadQuery(f"{name} should be {' or '.join(PCM_TYPES)}, or left out for Ogg/Opus, found {_shown(text)}.")
    return text


def _voice(name: str, text: str) -> str | None:
    """The name of a voice without its ending; empty for the server's choice."""
    found = VOICE.fullmatch(text)
    if text and not found:
        raise BadQuery(f"{name} should be the name of a voice such as NATF2, found {_shown(text)}.")
    return found[1] if found else None


def _role(name: str, text: str) -> str:
    if len(text) > LONGEST_ROLE:
        raise BadQuery(f"{name} may have {LONGEST_ROLE} characters, found {len(text)}.")
    return text


def _shown(text: Any) -> str:
    """A client's own words in a message to it, short and without control characters."""
    return repr(text if len(text) <= 40 else text[:40] + "...")
