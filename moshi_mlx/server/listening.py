"""What a client sends over its socket, until it goes or has long said nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from aiohttp import WSMessage, WSMsgType, web


class Gone(Exception):
    """The client does not listen any more."""


class Silence(Exception):
    """The client has long said nothing."""


async def messages(
    socket: web.WebSocketResponse, seconds: float, counts: Callable[[], bool] = lambda: True
) -> AsyncIterator[WSMessage]:
    """Each message, until the client closes. Raises `Gone` where the connection breaks, and `Silence` after `seconds` without a message
    (a quarter of them later at most), while silence `counts`.
    """
    last = time.monotonic()
    while True:
        try:
            message = await socket.receive(seconds / 4)
        except asyncio.TimeoutError:
            if counts() and time.monotonic() - last > seconds:
                raise Silence from None
            continue
        if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
            return
        if message.type is WSMsgType.ERROR:
            raise Gone("error")
        last = time.monotonic()
        yield message
