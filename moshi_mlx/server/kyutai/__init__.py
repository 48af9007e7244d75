"""The speech sockets of Kyutai's Rust server, for Unmute and every other client of it (docs/spec/speech-sockets.md)."""

from __future__ import annotations

from aiohttp import web

from ..metrics import Counts
from ..services import STT, TTS, Services
from .hear import HearLines
from .line import Lines
from .posts import Posts
from .speak import SpeakLines

STT_PATH, TTS_PATH, VOICE_PATH = "/api/asr-streaming", "/api/tts_streaming", "/api/voice"


def add(app: web.Application, services: Services, counts: dict[str, Counts], token: str | None) -> None:
    """Endpoints of the services there are. `token` is what the guard asks for already, None where any key of the protocol's will do."""
    posts = Posts(services.stt, services.tts, counts, token)
    lines: list[Lines] = []
    if services.stt is not None:
        lines.append(HearLines(services.stt, counts.setdefault(STT, Counts()), token))
        app.router.add_get(STT_PATH, lines[-1].handle, allow_head=False)
        app.router.add_post(STT_PATH, posts.transcribe)
    if services.tts is not None:
        lines.append(SpeakLines(services.tts, counts.setdefault(TTS, Counts()), token))
        app.router.add_get(TTS_PATH, lines[-1].handle, allow_head=False)
        app.router.add_post(TTS_PATH, posts.speak)
        app.router.add_post(VOICE_PATH, posts.voice)

    async def modules(_: web.Request) -> web.Response:
        return web.json_response(modules_info(services))

    async def stop(_: web.Application) -> None:
        for each in lines:
            await each.close()

    app.router.add_get("/api/modules_info", modules)
    app.on_shutdown.append(stop)


def modules_info(services: Services) -> list[dict[str, str]]:
    """What is served where, and how full it is; everything as text, as the Rust server has it."""
    found = []
    for service, kind, path in ((services.stt, "BatchedAsr", STT_PATH), (services.tts, "Py", TTS_PATH)):
        if service is not None:
            rows = service.scheduler
            slots = {"used_slots": str(rows.live), "total_slots": str(rows.rows)}
            found.append({"type": kind, "path": path, "model": service.name, **slots})
    return found
