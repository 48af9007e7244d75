"""A stream of the scheduler as an event loop reads it: its row, its items, and a client that may go away meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from ..engine.scheduler import Scheduler
from ..engine.streams import NoFreeRow
from ..speech_to_text.rows import HeardFrame, Marker
from .listening import Gone
from .metrics import Counts

# Requests that are not answered in real time wait so long for a row, and there may be so many of them.
ROW_SECONDS, LONGEST_QUEUE = 20.0, 32
# How often a client that is to be answered later is looked for.
LOOK_SECONDS = 0.5


class Reading:
    """`async with Reading(scheduler, options, request) as reading`: a stream that ends with the block, whatever ends it.

    `live` as of `Scheduler.open`. Raises `NoFreeRow` where too many wait already. What comes of it is added to `counts`.
    """

    def __init__(self, scheduler: Scheduler, options: Any, request: web.Request, counts: Counts, live: bool = True):
        self._request, self._counts = request, counts
        self._news = asyncio.Event()
        loop = asyncio.get_running_loop()
        if scheduler.waiting >= LONGEST_QUEUE:
            counts.refused += 1
            raise NoFreeRow(f"{LONGEST_QUEUE} others wait already; try again later.")
        self.stream = scheduler.open(options, live=live, notify=lambda: loop.call_soon_threadsafe(self._news.set))

    async def __aenter__(self) -> Reading:
        return self

    async def __aexit__(self, *_) -> None:
        self.stream.close()

    async def has_row(self, seconds: float | None = None) -> None:
        """Wait for a row, though not until it is ready. Raises `NoFreeRow` after `seconds` (`ROW_SECONDS`)."""
        deadline = time.monotonic() + (ROW_SECONDS if seconds is None else seconds)
        while self.stream.place and not self.stream.ended:
            if time.monotonic() > deadline:
                self._counts.refused += 1
                raise NoFreeRow("every row of this server is taken; try again later.")
            await self._wait(min(LOOK_SECONDS, max(0.01, deadline - time.monotonic())))
        self._counts.streams += 1

    async def opened(self, seconds: float | None = None) -> None:
        """Wait until its row is ready. Raises `NoFreeRow` as `has_row` does, and what went wrong with the options."""
        await self.has_row(seconds)
        while not self.stream.opened and not self.stream.ended:
            await self._wait()
        if self.stream.error is not None:
            raise self.stream.error

    async def items(self) -> AsyncIterator[Any]:
        """What the stream gives, until it ends. Raises what ended it, and `Gone` once nobody wants it."""
        while not self.stream.ended:
            item = self.stream.read()
            if item is None:
                await self._wait()
            else:
                # Silence that was put in and marks answer no frame of the client's.
                answers = not isinstance(item, Marker) and not (isinstance(item, HeardFrame) and item.index is None)
                self._counts.frames += answers
                yield item
        if self.stream.error is not None:
            raise self.stream.error

    async def _wait(self, seconds: float = LOOK_SECONDS) -> None:
        """For something new about the stream, not much longer than `seconds`."""
        if self._request.transport is None or self._request.transport.is_closing():
            raise Gone("client")
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), seconds)
        self._news.clear()
