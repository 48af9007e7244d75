"""The server as one aiohttp application, which other services are added to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import hdrs, web

from .. import version
from . import guard, kyutai, log, metrics, openai, pages, refusals
from .chat import Chat
from .door import Door
from .guard import Rules
from .metrics import Counts
from .refusals import Line
from .services import TALK, Services, Talking


@dataclass(frozen=True)
class About:
    """What a page should know before a talk."""

    model: str
    licence: str = ""
    hint: str = ""
    rows: int = 1
    recording: bool = False
    persona: bool = False
    translation: bool = False
    voices: list[str] = field(default_factory=list)
    sampling: dict[str, float] = field(default_factory=dict)
    version: str = version.__version__


def make_app(
    services: Services, rules: Rules, about: About | None = None, static: Path | None = pages.PAGE_FOLDER
) -> web.Application:
    """What `services` there are, on one port. `about` tells the page of its talk; `static` is the page's folder, None for no page."""
    middlewares = [_busy, openai.middleware, guard.middleware(rules), refusals.middleware]
    app = web.Application(middlewares=middlewares, client_max_size=16 << 20)
    app.on_response_prepare.append(guard.add_headers(rules))
    counts: dict[str, Counts] = {}

    async def health(_: web.Request) -> web.Response:
        told = services.health()
        return web.json_response(told, status=200 if services.running else 503)

    async def measured(_: web.Request) -> web.Response:
        text = metrics.text(services, counts)
        return web.Response(body=text.encode(), headers={hdrs.CONTENT_TYPE: metrics.CONTENT_TYPE})

    if services.talk is not None:
        counts[TALK] = _add_talk(app, services.talk, about or About(model=services.talk.name))
    kyutai.add(app, services, counts, rules.token)
    app.router.add_get("/api/build_info", build_info)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", measured)
    openai.add(app, services, counts)
    if static is not None:
        app.router.register_resource(pages.Page(static))
    return app


def _add_talk(app: web.Application, talk: Talking, about: About) -> Counts:
    chat = Chat(talk.scheduler, talk.make)

    async def stop(_: web.Application) -> None:
        await chat.close()

    async def told(_: web.Request) -> web.Response:
        return web.json_response(asdict(about))

    app.on_shutdown.append(stop)
    app.router.add_get("/api/chat", chat.handle)
    app.router.add_get("/api/about", told)
    return chat.counts


async def build_info(_: web.Request) -> web.Response:
    """The keys of the Rust server's, which its clients read; what does not apply is empty."""
    keys = (
        "build_timestamp", "build_date", "git_branch", "git_timestamp", "git_date", "git_hash", "git_describe",
        "rustc_host_triple", "rustc_version", "cargo_target_triple",
    )  # fmt: skip
    return web.json_response({**dict.fromkeys(keys, ""), "name": "moshi_mlx", "version": version.__version__})


DOOR = web.AppKey("door", Door)
# A role of the longest, each of its characters twelve in an address.
LONGEST_LINE = 1 << 16


@web.middleware
async def _busy(request: web.Request, handler: guard.Handler) -> web.StreamResponse:
    """Connections with a request under way are not among those given up when there are too many."""
    door, protocol = request.app.get(DOOR), request.protocol
    if door is None:
        return await handler(request)
    door.busy.add(protocol)
    try:
        return await handler(request)
    finally:
        door.busy.discard(protocol)


async def serve(
    app: web.Application,
    door: Door,
    stop: asyncio.Event,
    ready: Callable[[], Any] = lambda: None,
) -> None:
    """Answer at the door's sockets until `stop` is set."""
    app[DOOR] = door
    runner = web.AppRunner(app, shutdown_timeout=5.0)
    await runner.setup()
    server, loop = runner.server, asyncio.get_running_loop()
    assert server is not None

    def line() -> Line:
        # It has as long for a request's headers as it may be idle between two requests.
        return Line(
            server,
            loop=loop,
            access_log=None,  # type: ignore[arg-type]  # None is what its callers pass for no log.
            keepalive_timeout=door.idle_seconds,
            max_line_size=LONGEST_LINE,
            logger=log.requests,
        )

    try:
        await door.open(server, line)
        ready()
        await stop.wait()
    finally:
        door.close()
        # Before the cleanup, which hears nothing of what clients answer to a farewell.
        await app.shutdown()
        await runner.cleanup()
