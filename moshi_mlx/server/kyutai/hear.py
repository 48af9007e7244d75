"""`/api/asr-streaming`: speech in, words with times and pauses out, as the Rust server has it (docs/spec/speech-sockets.md).

Beyond it: pauses of models without pause heads, words of models whose text lags far behind when a client flushes, markers on the
client's own clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from aiohttp import WSMessage, WSMsgType, web

from ...speech_to_text.live import Event, LiveWord, LiveWordEnd
from ...speech_to_text.rows import Marker
from ..metrics import Counts
from ..opus import OpusReader
from ..pauses import Pauses
from ..services import Hearing
from . import messages
from .line import Line, Lines
from .messages import BadMessage

FRAME, RATE = 1920, 24000
# A client with so much backlog is listened to again once less waits: what it sends is not lost.
BACKLOG = 90 * RATE
# Clients flush with 0.5 s of zeros; text that lags further behind than this is fetched by silence of ours.
FLUSHED_SECONDS = 0.5
# Zeros that come so much at once, and not behind a backlog, are a flush and no gap between words.
FLUSH_FRAMES, FLUSH_WITHIN, LIVE_BACKLOG = 4, 0.1, 6 * FRAME
# A client that sends nothing for so long while it waits for its marker has sent all the silence it means to.
MARKER_SECONDS = 0.3


def event_message(event: Event) -> dict[str, Any] | None:
    if isinstance(event, LiveWord):
        return {"type": "Word", "text": event.text, "start_time": event.start}
    return {"type": "EndWord", "stop_time": event.end} if isinstance(event, LiveWordEnd) else None


class HearLines(Lines):
    name = "stt"

    def __init__(self, service: Hearing, counts: Counts, token: str | None):
        super().__init__(service.scheduler, counts, token)
        self.service = service

    def options(self, query: Mapping[str, str]) -> tuple[Any, Any]:
        return self.service.make(), None

    def line(self, request: web.Request, socket: web.WebSocketResponse, how: Any) -> Line:
        return HearLine(request, socket, self.service)


class Flushes:
    """Sees by a client's sound when it flushes: zeros faster than they would last."""

    def __init__(self) -> None:
        self._zeros, self._since, self._spoke = 0, 0.0, False

    def hear(self, pcm: np.ndarray, now: float) -> bool:
        """Whether `pcm` completes a flush. One is told once until there is sound again."""
        sound = np.flatnonzero(pcm)
        if len(sound):
            self._spoke, self._zeros = True, 0
        trailing = len(pcm) - 1 - int(sound[-1]) if len(sound) else len(pcm)
        if not self._zeros or now - self._since > FLUSH_WITHIN:
            self._since, self._zeros = now, 0
        self._zeros += trailing
        flushed = self._spoke and self._zeros >= FLUSH_FRAMES * FRAME
        if flushed:
            self._spoke = False
        return flushed


class HearLine(Line):
    def __init__(self, request: web.Request, socket: web.WebSocketResponse, service: Hearing):
        super().__init__(request, socket)
        self._pauses, self._flushes = Pauses(service.heads), Flushes()
        self._lags = service.delay > FLUSHED_SECONDS
        self._opus: OpusReader | None = None
        self._markers = 0

    @property
    def skipped(self) -> int:
        return 0 if self._opus is None else self._opus.skipped

    async def opened(self) -> None:
        await self.send(messages.pack(messages.READY))

    async def take(self, message: WSMessage) -> None:
        # Texts mean nothing here.
        if message.type is not WSMsgType.BINARY:
            return
        kind, fields = messages.unpack(message.data)
        if kind == "Audio":
            await self._hear(messages.floats(fields, "pcm"))
        elif kind == "OggOpus":
            self._opus = self._opus or OpusReader()
            await self._hear(self._opus.decode(messages.octets(fields, "data")))
        elif kind == "Marker":
            self._markers += 1
            self.stream.mark(messages.whole(fields, "id"))
        elif kind != "Init":
            raise BadMessage(f"{kind[:40]!r} is no message of this service.")

    async def _hear(self, pcm: np.ndarray) -> None:
        if not len(pcm):
            return
        live = self.stream.buffered <= LIVE_BACKLOG
        self._pauses.hear(pcm)
        for at in range(0, len(pcm), RATE):
            await self._room()
            self.stream.feed(pcm[at : at + RATE])
        if self._flushes.hear(pcm, time.monotonic()) and self._lags and live:
            self.stream.flush()

    async def _room(self) -> None:
        while self.stream.buffered > BACKLOG and not self.stream.ended:
            self.holding = True
            await asyncio.sleep(0.05)
        self.holding = False

    async def waits(self) -> float | None:
        if not self._markers:
            return None
        still = time.monotonic() - self.data
        if still > MARKER_SECONDS and self.stream.buffered < FRAME:
            self._markers = 0
            self.stream.flush()
            return None
        return MARKER_SECONDS / 2

    async def give(self, item: Any) -> None:
        if isinstance(item, Marker):
            self._markers = max(0, self._markers - 1)
            return await self.send(messages.pack({"type": "Marker", "id": item.id}))
        for event in item.events:
            told = event_message(event)
            if told is not None:
                await self.send(messages.pack(told))
        if item.index is not None:
            self.counts.frames += 1
            step = {"step_idx": item.index, "prs": self._pauses.of(item), "buffered_pcm": self.stream.buffered}
            await self.send(messages.pack({"type": "Step", **step}, single=True))
        return None
