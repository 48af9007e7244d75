"""Writing an answer piece by piece to a client that may not take it."""

from __future__ import annotations

import asyncio

from aiohttp import web

from .listening import Gone

# A client that takes nothing for so long is gone.
UNREAD_SECONDS = 60.0


async def deliver(request: web.Request, response: web.StreamResponse, data: bytes) -> None:
    """Raises `Gone`; a client that takes nothing is cut off, and its row is for others."""
    try:
        await asyncio.wait_for(response.write(data), UNREAD_SECONDS)
    except asyncio.TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise Gone("unread") from None
    except (ConnectionError, RuntimeError):
        raise Gone("client") from None
