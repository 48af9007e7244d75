"""`/api/tts_streaming`: text in while it is written, speech and the times of its words out, as the Rust server has it.

A client that does not read makes its row stand still; nothing is lost and nobody else waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from aiohttp import WSMessage, WSMsgType, web

from ...text import Word
from ...text_to_speech.rows import Spoken
from ..metrics import Counts
from ..opus import OpusWriter, Pcm
from ..query import BadQuery, seed_of
from ..services import Speaking
from . import messages
from .line import Line, Lines
from .messages import BadMessage

RAW_OPUS, OPUS, RAW_PCM, PCM = FORMATS = ("OggOpus", "OggOpusMessagePack", "Pcm", "PcmMessagePack")
EOS = b"\0"


class SpeakLines(Lines):
    name = "tts"

    def __init__(self, service: Speaking, counts: Counts, token: str | None):
        super().__init__(service.scheduler, counts, token)
        self.service = service

    def options(self, query: Mapping[str, str]) -> tuple[Any, Any]:
        """Temperatures and the like, which the Rust server's own model does not look at, are not looked at here."""
        wanted = query.get("format", RAW_OPUS)
        if wanted not in FORMATS:
            raise BadQuery(f"format should be one of {', '.join(FORMATS)}, found {wanted[:40]!r}.")
        speak = self.service.make(query.get("voice"), seed=seed_of(query))
        return replace(speak, tell_pauses=True), wanted

    def line(self, request: web.Request, socket: web.WebSocketResponse, how: Any) -> Line:
        return SpeakLine(request, socket, how)


class SpeakLine(Line):
    # Whoever is being read to has nothing to send; that it is there the answers to pings say.
    silent, idle = 30.0, float("inf")

    def __init__(self, request: web.Request, socket: web.WebSocketResponse, form: str):
        super().__init__(request, socket, tells=form in (OPUS, PCM))
        self._form = form
        self._opus = OpusWriter() if form in (RAW_OPUS, OPUS) else None
        self._raw = Pcm("pcm_f32le")

    async def opened(self) -> None:
        if self.tells:
            await self.send(messages.pack(messages.READY))

    async def take(self, message: WSMessage) -> None:
        if message.type is WSMsgType.TEXT:
            return self._say(message.data)
        if message.data == EOS:
            return self.stream.finish()
        kind, fields = messages.unpack(message.data)
        if kind == "Text":
            self._say(messages.text(fields, "text"))
        elif kind == "Voice":
            values = messages.floats(fields, "embeddings")
            self.stream.voice(values.reshape(messages.shape(fields, len(values))))
        elif kind == "Eos":
            self.stream.finish()
        else:
            raise BadMessage(f"{kind[:40]!r} is no message of this service.")
        return None

    def _say(self, text: str) -> None:
        # A message holds whole words.
        self.stream.say(text + " ")

    async def give(self, item: Spoken) -> None:
        if len(item.pcm):
            self.counts.frames += 1
            await self._sound(item.pcm)
        if self.tells:
            for word in item.words:
                await self.send(messages.pack(word_message(word)))

    async def _sound(self, pcm: np.ndarray) -> None:
        sound = None if self._opus is None else self._opus.encode(pcm)
        if self._form == PCM:
            await self.send(messages.pack({"type": "Audio", "pcm": pcm.tolist()}, single=True))
        elif self._form == OPUS:
            assert sound is not None
            # As the Rust server writes bytes.
            await self.send(messages.pack({"type": "OggOpus", "data": list(sound)}))
        else:
            await self.send(self._raw.encode(pcm) if sound is None else sound)


def word_message(word: Word) -> dict[str, Any]:
    return {"type": "Text", "text": word.text, "start_s": word.start, "stop_s": word.end}
