"""A stream of the scheduler as an event loop reads it: its row, its items, and a client that may go away meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from ...engine.scheduler import Scheduler
from ...engine.streams import NoFreeRow
from .errors import full

# Requests that are not answered in real time wait so long for a row, and there may be so many of them.
ROW_SECONDS, LONGEST_QUEUE = 20.0, 32
# How often a client that is to be answered later is looked for.
LOOK_SECONDS = 0.5


class Gone(ConnectionError):
    """Nobody is there to be answered."""


class Reading:
    """`async with Reading(scheduler, options, request) as reading`: a stream that ends with the block, whatever ends it.

    `live` as of `Scheduler.open`. Raises `ApiError` where there is no row.
    """

    def __init__(self, scheduler: Scheduler, options: Any, request: web.Request, live: bool = True, wait: bool = True):
        self._request = request
        self._news = asyncio.Event()
        loop = asyncio.get_running_loop()
        if wait and scheduler.waiting >= LONGEST_QUEUE:
            raise full()
        try:
            self.stream = scheduler.open(
                options, wait=wait, live=live, notify=lambda: loop.call_soon_threadsafe(self._news.set)
            )
        except NoFreeRow:
            raise full() from None

    async def __aenter__(self) -> Reading:
        return self

    async def __aexit__(self, *_) -> None:
        self.stream.close()

    async def opened(self) -> None:
        """Wait for the row. Raises `ApiError` (503) when it takes too long, and what went wrong with the options."""
        deadline = time.monotonic() + ROW_SECONDS
        while not self.stream.opened and not self.stream.ended:
            if time.monotonic() > deadline and self.stream.place:
                raise full()
            await self.news()
        if self.stream.error is not None:
            raise self.stream.error

    async def items(self) -> AsyncIterator[Any]:
        """What the stream gives, until it ends. Raises what ended it, and `Gone` once nobody wants it."""
        while not self.stream.ended:
            item = self.stream.read()
            if item is None:
                await self.news()
            else:
                yield item
        if self.stream.error is not None:
            raise self.stream.error

    async def news(self, seconds: float = LOOK_SECONDS) -> None:
        """Wait for something new about the stream, not much longer than `seconds`."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except asyncio.TimeoutError:
            if self._request.transport is None or self._request.transport.is_closing():
                raise Gone from None
        self._news.clear()
