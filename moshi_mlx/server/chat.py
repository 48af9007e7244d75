"""`/api/chat`: one client, one talk, one row (docs/spec/protocol.md).

The socket's handler only moves bytes: what the client sends goes to its stream of the scheduler, what the stream gives goes
back. It never waits for the model, and the model never for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import time
from collections.abc import Callable
from typing import Any

from aiohttp import WSCloseCode, WSMsgType, web

from ..engine.scheduler import Scheduler
from ..engine.streams import ModelStopped, NoFreeRow, Stream
from ..engine.token_clock import UNGENERATED
from ..errors import MoshiError
from ..session.reply import Frame
from . import kinds, log
from .farewell import Farewell
from .guard import SUB_PROTOCOL
from .listening import Gone, Silence, messages
from .metrics import Counts
from .opus import SoundReader, SoundWriter, coders
from .query import BadQuery, Wishes, parse

LARGEST_MESSAGE = 1 << 20
PING_SECONDS = 10.0
# A client that takes nothing for so long is gone, and so is one that sends nothing for that long.
UNREAD_SECONDS, SILENT_SECONDS = 15.0, 120.0
LONGEST_QUEUE = 32
RETRY_SECONDS = "10"
FIGURES_FRAMES = 6
FRAME_SECONDS = 0.08
SETTLING_SECONDS = 0.3

Make = Callable[[Wishes], Any]


class Chat:
    """The handler of the socket. `make(wishes)` gives the scheduler's options for a talk, and may raise `BadQuery`."""

    def __init__(self, scheduler: Scheduler, make: Make):
        self.scheduler, self._make = scheduler, make
        self.counts = Counts()
        self._numbers = itertools.count(1)
        self._open: set[_Talk] = set()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        try:
            wishes = parse(request.query)
            options = self._make(wishes)
        except BadQuery as e:
            return self._refuse(400, str(e))
        socket = web.WebSocketResponse(
            protocols=(SUB_PROTOCOL,), heartbeat=PING_SECONDS, max_msg_size=LARGEST_MESSAGE, compress=False, timeout=2.0
        )
        if self.scheduler.waiting >= LONGEST_QUEUE:
            return self._refuse(503, f"{LONGEST_QUEUE} others wait already.", {"Retry-After": RETRY_SECONDS})
        if not socket.can_prepare(request):
            return self._refuse(426, "talks are held over a WebSocket.", {"Upgrade": "websocket"})
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            loop.call_soon_threadsafe(news.set)

        try:
            stream = self.scheduler.open(options, wait=wishes.wait, notify=notify)
        except NoFreeRow:
            busy = "every row of this server is in a talk."
            return self._refuse(503, busy, {"Retry-After": RETRY_SECONDS})
        except MoshiError as e:
            return self._refuse(503, str(e))
        talk = _Talk(next(self._numbers), self, request, socket, stream, news, wishes)
        self._open.add(talk)
        try:
            await socket.prepare(request)
            await talk.run()
        finally:
            stream.close()
            self._open.discard(talk)
        return socket

    async def close(self) -> None:
        """The server stops: every client is told so."""
        await asyncio.gather(*(t.end(WSCloseCode.GOING_AWAY, "the server stops") for t in list(self._open)))

    def _refuse(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> web.Response:
        self.counts.refused += 1
        log.event("talk.refused", status=status, reason=sentence)
        return web.Response(status=status, text=sentence + "\n", headers=headers)


class _Talk:
    """One client's socket and stream."""

    def __init__(
        self,
        number: int,
        chat: Chat,
        request: web.Request,
        socket: web.WebSocketResponse,
        stream: Stream,
        news: asyncio.Event,
        wishes: Wishes,
    ):
        self.number, self._chat, self._request = number, chat, request
        self._socket, self._stream = socket, stream
        self._news, self._wishes, self._farewell = news, wishes, Farewell(socket)
        self._reader: SoundReader
        self._writer: SoundWriter
        self._reader, self._writer = coders(wishes.audio)
        self._frames = self._late = 0
        self._told: int | None = None
        self._dropping = self._answered = False
        self._begun = time.monotonic()

    async def run(self) -> None:
        """Until the client goes, the stream ends or the server stops."""
        self._chat.counts.streams += 1
        log.event("talk.connected", talk=self.number, audio=self._wishes.audio, place=self._stream.place)
        listening = asyncio.create_task(self._listen())
        speaking = asyncio.create_task(self._speak())
        self._farewell.listening = listening
        try:
            done, _ = await asyncio.wait({listening, speaking}, return_when=asyncio.FIRST_COMPLETED)
            closed = await self._farewell.done()
            for task in done:
                if not task.cancelled():
                    task.result()
            reason = "server" if closed or speaking in done else "client"
        except Silence:
            reason = "silence"
            await self.end(WSCloseCode.OK, f"nothing was heard for {SILENT_SECONDS:.0f} s")
        except Gone as e:
            reason = str(e)
        finally:
            for task in (listening, speaking):
                task.cancel()
            await asyncio.gather(listening, speaking, return_exceptions=True)
            self._stream.close()
            self._chat.counts.bytes_skipped += getattr(self._reader, "skipped", 0)
        log.event(
            "talk.ended", talk=self.number, by=reason, seconds=time.monotonic() - self._begun, frames=self._frames,
            late=self._late, dropped_in=self._stream.dropped_in // 1920, dropped_out=self._stream.dropped_out,
        )  # fmt: skip

    async def end(self, code: int, sentence: str) -> None:
        """A last word, then the close; a client that does not take it is cut off."""
        try:
            await asyncio.wait_for(self._close(code, sentence), 5.0)
        except (asyncio.TimeoutError, ConnectionError, RuntimeError):
            self._cut()

    async def _close(self, code: int, sentence: str) -> None:
        await self._socket.send_bytes(kinds.error(sentence))
        await self._farewell.close(code, sentence)

    def _cut(self) -> None:
        if self._request.transport is not None:
            self._request.transport.abort()

    # What the client sends ------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        # Whoever waits for a row has nothing to say.
        async for message in messages(self._socket, SILENT_SECONDS, lambda: self._stream.opened):
            # Other kinds, and text, mean nothing to a model that hears and speaks all the time.
            if message.type is WSMsgType.BINARY and message.data[:1] == bytes([kinds.AUDIO]):
                self._hear(message.data[1:])

    def _hear(self, payload: bytes) -> None:
        if not self._stream.opened:
            self._reader.skip(payload)
            return
        pcm = self._reader.decode(payload)
        if len(pcm):
            lost = self._stream.feed(pcm)
            if lost and not self._dropping:
                log.event("talk.late", talk=self.number, waiting_ms=1000 * self._stream.buffered // 24000)
            self._dropping = bool(lost)

    # What it gets ---------------------------------------------------------------------------------------------------

    async def _speak(self) -> None:
        # A free row is given at the model's next step: nobody is told of a queue that there is not.
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._news.wait(), SETTLING_SECONDS)
        while not self._stream.opened and not self._stream.ended:
            await self._tell_place()
            await self._wait()
        if self._stream.opened:
            log.event("talk.begins", talk=self.number, waited=time.monotonic() - self._begun)
            if self._wishes.asked_for_metadata:
                await self._send(kinds.metadata(self._agreed()))
            await self._send(kinds.handshake())
        while not self._stream.ended:
            frame = self._stream.read()
            if frame is None:
                await self._wait()
            else:
                await self._say(frame)
        await self._end()

    async def _wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def _end(self) -> None:
        error = self._stream.error
        if error is None:
            await self._farewell.close(WSCloseCode.OK)
            return
        cause = error.__cause__ if isinstance(error, ModelStopped) else error
        if isinstance(cause, MoshiError):
            sentence = without_folders(str(cause))
        else:
            log.logger.error("the model failed", exc_info=cause)
            sentence = "the model failed; the server's log says why"
        await self.end(WSCloseCode.INTERNAL_ERROR, sentence)

    async def _tell_place(self) -> None:
        place = self._stream.place
        if place == self._told:
            return
        self._told = place
        if place == 0:
            # Its row is being prepared.
            return
        await self._send(kinds.error(waiting_sentence(place, self._chat.scheduler.rows)))

    def _agreed(self) -> dict[str, Any]:
        agreed: dict[str, Any] = {"talk": self.number}
        if self._wishes.audio != "opus":
            agreed["audio"] = self._wishes.audio
        return agreed

    async def _say(self, frame: Frame) -> None:
        self._frames += 1
        self._chat.counts.frames += 1
        if self._stream.buffered >= 1920:
            self._late += 1
            self._chat.counts.late += 1
        # Until every delay of the model has passed there is nothing to hear.
        if frame.text_token != UNGENERATED:
            if not self._answered and self._wishes.asked_for_metadata:
                await self._send(kinds.metadata({"first": frame.index}))
            self._answered = True
            await self._send(kinds.audio(self._writer.encode(frame.pcm)))
        if frame.text:
            await self._send(kinds.text(frame.text))
        if self._wishes.figures and self._frames % FIGURES_FRAMES == 0:
            await self._send(kinds.metadata({"figures": self._figures()}))

    def _figures(self) -> dict[str, Any]:
        figures = self._chat.scheduler.figures()
        return {
            "frames": self._frames,
            "late": self._late,
            "lag_ms": round(1000 * self._stream.buffered / 24000),
            "dropped": self._stream.dropped_in // 1920,
            "unread": self._stream.dropped_out,
            "step_ms": round(1000 * figures.p50, 1),
            "step_p95_ms": round(1000 * figures.p95, 1),
            "keeps_up": figures.p50 < FRAME_SECONDS,
        }

    async def _send(self, message: bytes) -> None:
        try:
            await asyncio.wait_for(self._socket.send_bytes(message), UNREAD_SECONDS)
        except asyncio.TimeoutError:
            self._cut()
            raise Gone("unread") from None
        except (ConnectionError, RuntimeError):
            raise Gone("client") from None


def without_folders(sentence: str) -> str:
    """A message of this machine for a client elsewhere: files by their names alone."""
    return re.sub(r"[/~][^\s'\",;]*/", "", sentence)


def waiting_sentence(place: int, rows: int) -> str:
    """Why nothing is heard yet."""
    busy = "Moshi is in another talk" if rows == 1 else f"Moshi is in {rows} other talks"
    return f"{busy}; you are number {place} in the queue. Your talk begins by itself."
