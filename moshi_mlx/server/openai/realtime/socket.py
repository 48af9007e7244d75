"""The WebSocket of a session: events in, events out, and a row of the model for as long as it is open."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable

import numpy as np
from aiohttp import WSCloseCode, WSMsgType, web

from ....engine.scheduler import Scheduler
from ... import log
from ...farewell import Farewell
from ...listening import Gone, Silence, messages
from ...metrics import Counts
from ...reading import Reading
from .. import errors
from ..errors import ApiError, bad
from . import beta, events
from .events import Event, Session

LARGEST_MESSAGE = 16 << 20
PING_SECONDS = 10.0
# A client that takes nothing for so long is gone; one that sends nothing for that long gives its row to others.
UNREAD_SECONDS, SILENT_SECONDS = 15.0, 120.0
# A row that was left a moment ago is free at the model's next turn; whoever gets none in this time is refused.
ROW_SECONDS = 0.25
# How often it is looked whether a row that is behind has room again.
ROOM_SECONDS = 0.02
SUB_PROTOCOL = "realtime"


class Connection:
    """One client. `make(connection)` gives its session once there is a stream."""

    def __init__(
        self,
        request: web.Request,
        options: object,
        scheduler: Scheduler,
        counts: Counts,
        make: Callable[[Connection], Session],
    ):
        self._request, self._scheduler, self._counts = request, scheduler, counts
        protocols = ",".join(request.headers.getall("Sec-WebSocket-Protocol", []))
        self._old = beta.is_wanted(request.headers.get("OpenAI-Beta", ""), protocols)
        self._socket = web.WebSocketResponse(
            protocols=(SUB_PROTOCOL,), heartbeat=PING_SECONDS, max_msg_size=LARGEST_MESSAGE, compress=False, timeout=2.0
        )
        self._farewell = Farewell(self._socket)
        if not self._socket.can_prepare(request):
            raise ApiError(426, "sessions are held over a WebSocket.", headers={"Upgrade": "websocket"})
        self.reading = Reading(scheduler, options, request, counts)
        self._session = make(self)
        self._old = self._old and self._session.had_beta
        self._dropping = False
        # What follows from an event or an item is sent before the next one is looked at.
        self._order = asyncio.Lock()

    def begin_anew(self, options: object) -> None:
        """Another stream in the place of the one that nothing was said to yet."""
        self.reading.stream.close()
        self.reading = Reading(self._scheduler, options, self._request, self._counts)

    async def run(self) -> web.WebSocketResponse:
        """Until the client goes, the stream ends or the server stops. Raises `NoFreeRow` before there is a socket."""
        begun = time.monotonic()
        try:
            await self.reading.has_row(ROW_SECONDS)
            await self._socket.prepare(self._request)
            log.event("session.begins", path=self._request.path)
            await self._send(self._session.begin())
            listening = asyncio.create_task(self._listen())
            speaking = asyncio.create_task(self._speak())
            try:
                self._farewell.listening = listening
                done, _ = await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
                await self._farewell.done()
                for task in done:
                    if not task.cancelled():
                        task.result()
            finally:
                for task in (listening, speaking):
                    task.cancel()
                await asyncio.gather(listening, speaking, return_exceptions=True)
        except Gone:
            pass
        finally:
            self.reading.stream.close()
            if self._socket.prepared:
                log.event("session.ended", path=self._request.path, seconds=time.monotonic() - begun)
        return self._socket

    async def end(self, code: int, e: ApiError | None) -> None:
        """The last events, then the close; a client that does not take them is cut off."""
        try:
            await self._send(self._session.end(e))
            await asyncio.wait_for(self._farewell.close(code, e.message if e else ""), 5.0)
        except (Gone, asyncio.TimeoutError):
            self._cut()

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    # What the client sends ------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        try:
            async for message in messages(self._socket, SILENT_SECONDS):
                if message.type is WSMsgType.TEXT:
                    await self._take(message.data)
                elif message.type is WSMsgType.BINARY:
                    binary = bad("events are text, found a binary message.", code="invalid_json")
                    await self._send([events.error(binary)])
        except Silence:
            silent = f"nothing was heard for {SILENT_SECONDS:.0f} s."
            await self.end(WSCloseCode.OK, bad(silent, code="session_expired"))
        raise Gone("client")

    async def _take(self, text: str) -> None:
        event: Event | None = None
        async with self._order:
            try:
                event = events.parse(text)
                received = self._session.receive(beta.to_current(event) if self._old else event)
            except Exception as e:
                await self._send([events.error(errors.of(e), event)])
                return
            await self._send(received.answers)
        if received.pcm is not None:
            await self._feed(received.pcm)

    async def _feed(self, pcm: np.ndarray) -> None:
        """Sound in pieces that the stream has room for. What a late model has no time for is dropped, but never a part of one message
        for another; a session that is patient waits instead.
        """
        stream = self.reading.stream
        limit = int(stream.bounds.seconds * stream.bounds.sample_rate)
        size = limit // 4
        for at in range(0, len(pcm), size):
            piece = pcm[at : at + size]
            while (at or self._session.patient) and stream.buffered + len(piece) > limit and not stream.ended:
                await asyncio.sleep(ROOM_SECONDS)
            lost = stream.feed(piece)
            if lost and not self._dropping:
                log.event("session.late", waiting_ms=1000 * stream.buffered // stream.bounds.sample_rate)
            self._dropping = bool(lost)

    # What it gets ---------------------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        try:
            while True:
                reading = self.reading
                async for item in reading.items():
                    async with self._order:
                        await self._send(self._session.put(item))
                if reading is self.reading:
                    break
        except Gone:
            raise
        except Exception as e:
            await self.end(WSCloseCode.INTERNAL_ERROR, errors.of(e))
            return
        await self.end(WSCloseCode.OK, None)

    async def _send(self, told: list[Event]) -> None:
        for event in told:
            event = {"event_id": events.new_id("event"), **(beta.from_current(event) if self._old else event)}
            try:
                await asyncio.wait_for(self._socket.send_str(json.dumps(event)), UNREAD_SECONDS)
            except asyncio.TimeoutError:
                self._cut()
                raise Gone("client") from None
            except (ConnectionError, RuntimeError):
                raise Gone("client") from None
