"""`/v1/models`, and which service a client means by the name of a model."""

from __future__ import annotations

import re
from typing import Any

from aiohttp import web

from ..services import STT, TALK, TTS, Service, Services
from .errors import ApiError

# Names of OpenAI's own models. Programs that cannot be told another mean the one model of the kind that is loaded.
_DATED = r"(-preview|-mini)?(-[0-9]{4}-[0-9]{2}-[0-9]{2}|-[0-9.]+)?(-mini)?"
_USUAL = {
    TALK: re.compile(rf"gpt-(4o-)?(mini-)?(realtime|audio){_DATED}|gpt-realtime-translate{_DATED}"),
    STT: re.compile(rf"whisper(-1)?|gpt-realtime-whisper|gpt-(4o-|live-)?(mini-)?transcribe(-diarize)?{_DATED}"),
    TTS: re.compile(rf"tts-1(-hd)?(-[0-9]+)?|gpt-(4o-)?(mini-)?tts{_DATED}"),
}
ANY = "moshi"
# For messages.
_WORDS = {TALK: "dialogue", STT: "speech-to-text", TTS: "text-to-speech"}


def named(services: Services, kind: str, name: str) -> Service:
    """The service of a `kind` that goes by `name`: its own, one of OpenAI's of the kind, or `moshi`. Raises `ApiError` (404)."""
    found = next((s for s in services if s.kind == kind), None)
    if found is None:
        loaded = ", ".join(s.name for s in services) or "none"
        raise _unknown(f"no {_WORDS[kind]} model is loaded; loaded: {loaded}.")
    if not _goes_by(found, name):
        raise _unknown(f"there is no {_WORDS[kind]} model {name[:80]!r}; {found.name} is loaded.")
    return found


def _goes_by(service: Service, name: str) -> bool:
    return name in (service.name, ANY) or _USUAL[service.kind].fullmatch(name) is not None


def kind_of(services: Services, name: str) -> str | None:
    """The kind of model that `name` is, as far as it can be told."""
    own = next((s.kind for s in services if s.name == name), None)
    return own or next((kind for kind, usual in _USUAL.items() if usual.fullmatch(name)), None)


def _unknown(message: str) -> ApiError:
    return ApiError(404, message, param="model", code="model_not_found")


class Models:
    """The handlers. `since`: when the server came to be, in seconds of the epoch."""

    def __init__(self, services: Services, since: int):
        self._services, self._since = services, since

    def _object(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._since, "owned_by": "moshi_mlx"}

    async def listed(self, _: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._object(s.name) for s in self._services]})

    async def one(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if not any(_goes_by(s, name) for s in self._services):
            loaded = ", ".join(s.name for s in self._services) or "none"
            raise _unknown(f"there is no model {name[:80]!r}; loaded: {loaded}.")
        return web.json_response(self._object(name))
