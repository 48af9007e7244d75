"""What all sessions have in common: how events are made, read and refused."""

from __future__ import annotations

import base64
import binascii
import json
import secrets
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ....audio.wav import to_int16
from ...opus import Pcm
from ..errors import ApiError, bad

Event = dict[str, Any]
FORMAT = {"type": "audio/pcm", "rate": 24000}
UNSUPPORTED = "unsupported"


@dataclass
class Received:
    """What came of a client's event: answers, and sound for the model, float32 `[n]`."""

    answers: list[Event] = field(default_factory=list)
    pcm: np.ndarray | None = None


class Session(Protocol):
    """One client's session: no sockets, no models. `patient`: no sound is dropped because the model is late, the client waits instead.

    `had_beta`: there are names of its events from before (see `beta`).
    """

    patient: bool
    had_beta: bool

    def begin(self) -> list[Event]:
        """The first events."""

    def receive(self, event: Event) -> Received:
        """An event of the client's. Raises `ApiError` for one that cannot be; the session goes on."""

    def put(self, item: Any) -> list[Event]:
        """An item of the stream."""

    def end(self, error: ApiError | None) -> list[Event]:
        """The stream has ended: the last events."""


class Control(Protocol):
    """What a session may ask of its stream (`engine.streams.Stream`)."""

    def flush(self) -> None: ...

    def mark(self, id: int) -> None: ...

    def finish(self) -> None: ...


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def parse(text: str) -> Event:
    """A message as an event with a type. Raises `ApiError`."""
    try:
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise bad("an event should be a JSON object, found other text.", code="invalid_json") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise bad("an event should be a JSON object with a type.", "type", "missing_required_parameter")
    return event


def error(e: ApiError, caused_by: Event | None = None) -> Event:
    """`caused_by`: the client's event, whose id it gave."""
    id = (caused_by or {}).get("event_id")
    told = {**e.body()["error"], "event_id": id if isinstance(id, str) else None}
    return {"type": "error", "error": told}


def unknown(event: Event) -> ApiError:
    return bad(f"this session has no event {event['type'][:80]!r}.", "type", "invalid_value")


def unsupported(what: str, param: str | None = None) -> ApiError:
    return bad(f"{what} cannot be had of this model; the session goes on.", param, UNSUPPORTED)


def decoded(event: Event, pcm: Pcm) -> np.ndarray:
    """The sound of an event: base64 of samples, a sample may lie over two events."""
    audio = event.get("audio")
    if not isinstance(audio, str):
        raise bad("audio should be base64 of 16-bit samples.", "audio", "invalid_value")
    try:
        return pcm.decode(base64.b64decode(audio, validate=True))
    except (binascii.Error, ValueError):
        raise bad("audio is no base64.", "audio", "invalid_value") from None


def encoded(pcm: np.ndarray) -> str:
    return base64.b64encode(to_int16(pcm).tobytes()).decode()


def inside(body: Event, *names: str) -> Any:
    """What stands in objects within objects; None where there is nothing. Raises `ApiError` where something else is in the way."""
    found: Any = body
    for at, name in enumerate(names):
        if found is None:
            return None
        if not isinstance(found, dict):
            raise bad(
                f"{'.'.join(names[:at]) or 'the event'} should be an object.", ".".join(names[:at]), "invalid_type"
            )
        found = found.get(name)
    return found


def check_format(event: Event, *names: str) -> None:
    """Refuse what is not PCM of 24 kHz."""
    where = ".".join(names)
    kind, rate = inside(event, *names, "type"), inside(event, *names, "rate")
    if kind not in (None, FORMAT["type"]) or rate not in (None, FORMAT["rate"]):
        raise bad(f"{where} should be audio/pcm of 24000 Hz.", where, "invalid_value")


def session_of(event: Event, kind: str) -> Event:
    """The settings of a `session.update`, of a session of this kind."""
    session = event.get("session")
    if not isinstance(session, dict):
        raise bad("session should be an object with what is to be changed.", "session", "invalid_type")
    if session.get("type", kind) != kind:
        raise bad(f"this is a session of the type {kind}, which stays what it is.", "session.type", "invalid_value")
    return session
