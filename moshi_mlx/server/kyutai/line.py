"""A socket of the speech services: who may open it, its row, pings, and clients that go silent or do not read.

A handler only moves messages between the socket and a stream of the scheduler; it never waits for the model, nor the model for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from ...engine.scheduler import Scheduler
from ...engine.streams import ModelStopped, NoFreeRow, SlowReader, Stream
from ...errors import MoshiError
from .. import log
from ..chat import without_folders
from ..farewell import Farewell
from ..listening import Gone
from ..metrics import Counts
from .messages import LARGEST_MESSAGE, BadMessage, error

PUBLIC_KEY = "public_token"
PING_SECONDS = 10.0
# A row that was left a moment ago is free at the model's next turn; whoever gets none in this time is refused.
ROW_SECONDS = 0.25
FULL = "no free channels"
STOPS = "the server stops"


def refused_key(request: web.Request, token: str | None) -> bool:
    """Whether a client has a key that is none of this server's. Where there is a `token`, the guard has asked for it already."""
    key = request.headers.get("kyutai-api-key")
    if key is None and request.method == "GET":
        # Browsers cannot give sockets headers.
        key = request.query.get("auth_id")
    return token is None and key not in (None, "", PUBLIC_KEY)


def unauthorised() -> web.Response:
    return web.Response(status=401, text="this server does not know that key.\n")


def failure(error: BaseException) -> str:
    """What a client is told of what ended its stream; what is a defect of ours is for the log."""
    cause = error.__cause__ if isinstance(error, ModelStopped) else error
    if cause is None or isinstance(cause, MoshiError):
        return without_folders(str(error))
    log.logger.error("the model failed", exc_info=cause)
    return "the model failed; the server's log says why"


class Lines(ABC):
    """The sockets of one kind. A subclass says what a `Line` of it is."""

    name = ""

    def __init__(self, scheduler: Scheduler, counts: Counts, token: str | None):
        self.scheduler, self.counts, self._token = scheduler, counts, token
        self._numbers = itertools.count(1)
        self._open: set[Line] = set()

    @abstractmethod
    def options(self, query: Mapping[str, str]) -> tuple[Any, Any]:
        """Of a stream, and of its line. Raises `BadQuery` for a value that a parameter cannot have."""

    @abstractmethod
    def line(self, request: web.Request, socket: web.WebSocketResponse, how: Any) -> Line:
        """The line of a client whose socket is open, as its query asks for."""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if refused_key(request, self._token):
            return self.refuse(unauthorised())
        try:
            options, how = self.options(request.query)
        except MoshiError as e:
            return self.refuse(web.Response(status=400, text=f"{e}\n"))
        # Pings are answered and sent here, since aiohttp's give up on a client whose backlog is not read on.
        socket = web.WebSocketResponse(max_msg_size=LARGEST_MESSAGE, compress=False, autoping=False, timeout=2.0)
        if not socket.can_prepare(request):
            headers = {"Upgrade": "websocket"}
            return self.refuse(web.Response(status=426, text="this is a WebSocket.\n", headers=headers))
        await socket.prepare(request)
        line = self.line(request, socket, how)
        line.number, line.counts = next(self._numbers), self.counts
        self._open.add(line)
        try:
            await self._serve(line, options)
        except Gone as e:
            line.by = str(e)
        finally:
            self._open.discard(line)
            log.event(f"{self.name}.ended", stream=line.number, by=line.by, seconds=time.monotonic() - line.begun)
        return socket

    def refuse(self, answer: web.Response) -> web.Response:
        self.counts.refused += 1
        log.event(f"{self.name}.refused", status=answer.status)
        return answer

    async def _serve(self, line: Line, options: Any) -> None:
        loop = asyncio.get_running_loop()
        try:
            stream = self.scheduler.open(options, notify=lambda: loop.call_soon_threadsafe(line.news.set))
        except NoFreeRow:
            return await self._full(line)
        except MoshiError as e:
            return await line.end(WSCloseCode.INTERNAL_ERROR, str(e))
        try:
            if not await line.has_row(stream, lambda: self.scheduler.rows - self.scheduler.live):
                return await self._full(line)
            self.counts.streams += 1
            log.event(f"{self.name}.begins", stream=line.number)
            await line.run()
        finally:
            stream.close()
            self.counts.bytes_skipped += line.skipped

    async def _full(self, line: Line) -> None:
        self.counts.refused += 1
        line.by = "full"
        await line.end(WSCloseCode.TRY_AGAIN_LATER, FULL)

    async def close(self) -> None:
        """The server stops: every client is told so."""
        await asyncio.gather(*(line.end(WSCloseCode.GOING_AWAY, STOPS) for line in list(self._open)))


class Line(ABC):
    """One client. A subclass reads (`take` for each message) and writes (`give` for each item of the stream).

    A client that answers nothing for `silent` seconds, pings included, is gone; one that has sent no message of its own for `idle` is sent away.
    """

    silent, idle = 20.0, 120.0
    stream: Stream
    counts: Counts

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, tells: bool = True):
        """`tells`: the client understands messages, not only sound."""
        self.request, self.socket, self.tells = request, socket, tells
        self.news, self._farewell = asyncio.Event(), Farewell(socket)
        self.number = 0
        self.by = "client"
        self.begun = self.heard = self.sent = self.data = time.monotonic()
        # While its backlog is worked off a client is not listened to.
        self.holding = False

    async def has_row(self, stream: Stream, free: Callable[[], int]) -> bool:
        """Wait a moment for a row; false if there is none. One of those that are `free` comes at the model's next turn, however long that is."""
        self.stream = stream
        deadline = time.monotonic() + ROW_SECONDS
        while stream.place and not stream.ended and (time.monotonic() < deadline or stream.place <= free()):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.news.wait(), 0.02)
            self.news.clear()
        return not stream.place or stream.ended

    async def run(self) -> None:
        """Until the client goes, the stream ends or the server stops."""
        tasks = [asyncio.create_task(job()) for job in (self._listen, self._speak, self._watch)]
        self._farewell.listening = tasks[0]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await self._farewell.done()
            for task in done:
                if not task.cancelled():
                    task.result()
        except MoshiError as e:
            self.by = "message"
            code = WSCloseCode.UNSUPPORTED_DATA if isinstance(e, BadMessage) else WSCloseCode.POLICY_VIOLATION
            await self.end(code, without_folders(str(e)))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # What the client sends ------------------------------------------------------------------------------------------

    @abstractmethod
    async def take(self, message: WSMessage) -> None:
        """A message of the client's, binary or text. Raises `MoshiError` for what it may not send."""

    async def waits(self) -> float | None:
        """Called before a message is waited for; how many seconds until it should be called again, None for never."""
        return None

    async def _listen(self) -> None:
        while True:
            try:
                message = await self.socket.receive(await self.waits())
            except asyncio.TimeoutError:
                continue
            if message.type in (WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED):
                return
            if message.type is WSMsgType.ERROR:
                raise Gone("error")
            self.heard = time.monotonic()
            if message.type is WSMsgType.PING:
                await self._pass(self.socket.pong(message.data))
            elif message.type in (WSMsgType.BINARY, WSMsgType.TEXT):
                self.data = self.heard
                await self.take(message)

    # What it gets ---------------------------------------------------------------------------------------------------

    @abstractmethod
    async def opened(self) -> None:
        """The row is ready."""

    @abstractmethod
    async def give(self, item: Any) -> None:
        """An item of the stream."""

    async def _speak(self) -> None:
        while not self.stream.opened and not self.stream.ended:
            await self._wait()
        if self.stream.opened:
            await self.opened()
        while not self.stream.ended:
            item = self.stream.read()
            if item is None:
                await self._wait()
            else:
                await self.give(item)
        self.by = "server" if self.stream.error is None else "failure"
        if self.stream.error is None:
            await self._farewell.close(WSCloseCode.OK)
        elif isinstance(self.stream.error, SlowReader):
            await self.end(WSCloseCode.TRY_AGAIN_LATER, str(self.stream.error))
        else:
            await self.end(WSCloseCode.INTERNAL_ERROR, failure(self.stream.error))

    async def _wait(self) -> None:
        await self.news.wait()
        self.news.clear()

    async def send(self, message: bytes) -> None:
        await self._pass(self.socket.send_bytes(message))
        self.sent = time.monotonic()

    async def _pass(self, sending: Any) -> None:
        try:
            await asyncio.wait_for(sending, self.silent)
        except asyncio.TimeoutError:
            self.cut()
            raise Gone("unread") from None
        except (ConnectionError, RuntimeError):
            raise Gone("client") from None

    async def _watch(self) -> None:
        """Ping after a silence of ours, and see whether the client is still there."""
        pinged = 0.0
        while True:
            await asyncio.sleep(PING_SECONDS / 20)
            now = time.monotonic()
            if self.holding:
                self.heard = self.data = now
            elif now - self.heard > self.silent:
                self.cut()
                raise Gone("silence")
            elif now - self.data > self.idle:
                await self.end(WSCloseCode.OK, f"nothing was sent for {self.idle:.0f} s")
                raise Gone("idle")
            if now - max(self.sent, pinged) > PING_SECONDS:
                pinged = now
                await self._pass(self.socket.ping())

    @property
    def skipped(self) -> int:
        """Bytes of the client that were no page of Ogg."""
        return 0

    # The end --------------------------------------------------------------------------------------------------------

    async def end(self, code: int, sentence: str) -> None:
        """A last word, then the close; a client that does not take it is cut off."""
        try:
            await asyncio.wait_for(self._tell_and_close(code, sentence), 5.0)
        except (asyncio.TimeoutError, ConnectionError, RuntimeError):
            self.cut()

    async def _tell_and_close(self, code: int, sentence: str) -> None:
        if self.tells:
            await self.socket.send_bytes(error(sentence))
        await self._farewell.close(code, sentence)

    def cut(self) -> None:
        if self.request.transport is not None:
            self.request.transport.abort()
