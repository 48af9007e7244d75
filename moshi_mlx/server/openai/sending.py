"""Answers that are sent while they come to be: bytes, or server-sent events."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import hdrs, web

from .. import log
from ..delivery import deliver
from . import errors

EVENTS = "text/event-stream"


class Sending:
    """A response whose status is sent with its first bytes: until then it may still become an error."""

    def __init__(self, request: web.Request, content_type: str):
        self._request = request
        headers = {hdrs.CONTENT_TYPE: content_type, hdrs.CACHE_CONTROL: "no-store", "X-Accel-Buffering": "no"}
        self._response = web.StreamResponse(headers=headers)

    @property
    def begun(self) -> bool:
        return self._response.prepared

    async def begin(self) -> None:
        if not self.begun:
            await self._response.prepare(self._request)

    async def send(self, data: bytes) -> None:
        """Raises `Gone`."""
        await self.begin()
        if data:
            await deliver(self._request, self._response, data)

    async def event(self, event: dict[str, Any]) -> None:
        await self.send(b"data: " + json.dumps(event, ensure_ascii=False).encode() + b"\n\n")

    async def end(self) -> web.StreamResponse:
        await self.begin()
        await self._response.write_eof()
        return self._response

    async def fail(self, error: Exception, events: bool) -> web.StreamResponse:
        """What went wrong: as an answer, as an event where events have begun, else by a connection that breaks off."""
        told = errors.of(error)
        if not self.begun:
            return told.response()
        log.event("request.failed", path=self._request.path, reason=told.message)
        if events:
            await self.event(told.body())
            return await self.end()
        self.cut()
        return self._response

    def cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()
