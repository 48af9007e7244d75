"""Which session a client means: by its path, by the name of the model, by what it intends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from aiohttp import WSCloseCode, web

from ...metrics import Counts
from ...pauses import Pauses
from ...query import Wishes
from ...services import STT, TALK, Hearing, Services, Talking
from .. import models
from ..errors import ApiError, bad
from .events import Session
from .socket import Connection
from .talking import Talk
from .transcribing import Transcription
from .translating import Translation

LONGEST_ROLE = 4000


class Realtime:
    """The handlers."""

    def __init__(self, services: Services, counts: Mapping[str, Counts]):
        self._services, self._counts = services, counts
        self._open: set[Connection] = set()

    async def close(self) -> None:
        """The server stops: every client is told so."""
        stops = ApiError(503, "the server stops.", code="server_stops")
        await asyncio.gather(*(c.end(WSCloseCode.GOING_AWAY, stops) for c in list(self._open)))

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """`/v1/realtime`: a conversation or a transcription."""
        if "call_id" in request.query:
            raise bad("calls cannot be had here; connect with a model.", "call_id", "unsupported")
        name = request.query.get("model") or models.ANY
        service = models.named(self._services, self._kind(request, name), name)
        if isinstance(service, Hearing):
            return await self._hold(request, service, service.make(), lambda c: self._transcription(service, c))
        assert isinstance(service, Talking)
        return await self._hold(request, service, service.make(Wishes()), lambda c: _talk(service, c))

    async def translate(self, request: web.Request) -> web.StreamResponse:
        """`/v1/realtime/translations`."""
        service = models.named(self._services, TALK, request.query.get("model") or models.ANY)
        assert isinstance(service, Talking)
        if not service.translation:
            raise ApiError(404, f"{service.name} does not translate.", param="model", code="model_not_found")
        make = service.make(Wishes())
        return await self._hold(request, service, make, lambda c: Translation(service.name, c.reading.stream))

    def _kind(self, request: web.Request, name: str) -> str:
        if request.query.get("intent") == "transcription":
            return STT
        if name != models.ANY:
            return STT if models.kind_of(self._services, name) == STT else TALK
        return STT if self._services.talk is None and self._services.stt is not None else TALK

    async def _hold(
        self, request: web.Request, service: Hearing | Talking, options: object, make: Callable[[Connection], Session]
    ) -> web.StreamResponse:
        connection = Connection(request, options, service.scheduler, self._counts[service.kind], make)
        self._open.add(connection)
        try:
            return await connection.run()
        finally:
            self._open.discard(connection)

    def _transcription(self, stt: Hearing, connection: Connection) -> Session:
        return Transcription(
            stt.name,
            connection.reading.stream,
            Pauses(stt.heads),
            lambda name: models.named(self._services, STT, name),
            stt.delay,
        )


def _talk(talk: Talking, connection: Connection) -> Session:
    def begin_anew(voice: str | None, instructions: str) -> None:
        if len(instructions) > LONGEST_ROLE:
            raise bad(f"session.instructions may have {LONGEST_ROLE} characters.", "session.instructions")
        connection.begin_anew(talk.make(Wishes(voice=voice, role=instructions)))

    return Talk(talk.name, talk.persona, begin_anew)
