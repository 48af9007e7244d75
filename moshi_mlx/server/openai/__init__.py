"""OpenAI's interfaces for sound: `/v1/models`, `/v1/audio/...`, `/v1/realtime` (docs/server.md)."""

from __future__ import annotations

import time

from aiohttp import web

from ..metrics import Counts
from ..services import Services
from .errors import middleware
from .models import Models
from .realtime.handlers import Realtime
from .speech import Speech
from .transcriptions import Transcriptions

__all__ = ["add", "middleware"]


def add(app: web.Application, services: Services, counts: dict[str, Counts]) -> None:
    """What `services` there are, for OpenAI's clients. `middleware` has to stand before whatever may refuse a request."""
    for service in services:
        counts.setdefault(service.kind, Counts())
    models, speech = Models(services, int(time.time())), Speech(services, counts)
    transcriptions, realtime = Transcriptions(services, counts), Realtime(services, counts)

    async def stop(_: web.Application) -> None:
        await realtime.close()

    app.on_shutdown.append(stop)
    app.add_routes([
        web.get("/v1/models", models.listed),
        web.get("/v1/models/{name:.+}", models.one),
        web.post("/v1/audio/transcriptions", transcriptions.transcribe),
        web.post("/v1/audio/speech", speech.speak),
        web.get("/v1/audio/voices", speech.voices),
        web.get("/v1/realtime", realtime.handle, allow_head=False),
        web.get("/v1/realtime/translations", realtime.translate, allow_head=False),
    ])  # fmt: skip
