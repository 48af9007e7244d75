"""The same services for who asks once: a recording for its words, a text for its sound, a clip for its voice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web

from ...audio.wav import stream_header, to_int16
from ...engine.streams import NoFreeRow
from ...errors import InputError, MoshiError
from .. import recordings
from ..chat import without_folders
from ..delivery import deliver
from ..listening import Gone
from ..metrics import Counts
from ..reading import Reading
from ..services import Hearing, Speaking
from .hear import RATE, event_message
from .line import refused_key, unauthorised
from .messages import pack

LARGEST_CLIP, LONGEST_TEXT = 16 << 20, 1 << 16
# How long a request waits for a row.
ROW_SECONDS = 100.0
FULL = "every row of this server is taken."
RETRY = {"Retry-After": "10"}


class Refused(Exception):
    """The answer to a request that cannot be met."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None):
        super().__init__(sentence)
        self.answer = web.Response(status=status, text=without_folders(sentence) + "\n", headers=headers)


class Posts:
    """Handlers of the three POST forms; a service that there is not is None."""

    def __init__(self, stt: Hearing | None, tts: Speaking | None, counts: dict[str, Counts], token: str | None):
        self._stt, self._tts, self._counts, self._token = stt, tts, counts, token

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        """A recording in any format -> its words and their ends, as a JSON array."""
        assert self._stt is not None
        try:
            self._check_key(request)
            options = self._stt.make()
            async with _kept(request, recordings.LARGEST) as path, self._row(request, self._stt, options) as reading:
                feeding = asyncio.create_task(recordings.feed(reading.stream, path, lambda _: None))
                try:
                    events = [e async for item in reading.items() for e in getattr(item, "events", ())]
                finally:
                    reading.stream.close()
                    await asyncio.gather(feeding, return_exceptions=True)
                feeding.result()
            return web.json_response([m for m in map(event_message, events) if m is not None])
        except Gone:
            return web.Response(status=499)
        except Refused as e:
            return e.answer
        except MoshiError as e:
            return Refused(400, str(e)).answer

    async def speak(self, request: web.Request) -> web.StreamResponse:
        """JSON with `text` and `voice` -> a wav while it is spoken."""
        assert self._tts is not None
        response: web.StreamResponse | None = None
        try:
            self._check_key(request)
            text, voice = await _said(request)
            async with self._row(request, self._tts, self._tts.make(voice)) as reading:
                reading.stream.say(text + " ")
                reading.stream.finish()
                items = reading.items()
                # What cannot be said is told before there is an answer.
                first = await anext(items, None)
                response = web.StreamResponse(headers={"Content-Type": "audio/wav"})
                await response.prepare(request)
                await deliver(request, response, stream_header(1, RATE) + _wav_of(first))
                async for item in items:
                    await deliver(request, response, _wav_of(item))
                await response.write_eof()
                return response
        except Gone:
            return web.Response(status=499)
        except Refused as e:
            return e.answer
        except MoshiError as e:
            if response is not None and request.transport is not None:
                # Too late for words: a wav without an end.
                request.transport.abort()
            return Refused(400, str(e)).answer

    async def voice(self, request: web.Request) -> web.StreamResponse:
        """A clip -> the message that makes `/api/tts_streaming` speak in its voice."""
        assert self._tts is not None
        try:
            self._check_key(request)
            if not self._tts.clones:
                raise Refused(
                    501,
                    "this model speaks with voices made for it; only one that goes on from a clip can take on its voice.",
                )
            async with _kept(request, LARGEST_CLIP) as path:
                pcm = await asyncio.to_thread(recordings.whole, path, RATE)
            codes = await asyncio.wrap_future(self._tts.scheduler.call(lambda kind: kind.tts.clip_codes(pcm)))
        except Gone:
            return web.Response(status=499)
        except Refused as e:
            return e.answer
        except MoshiError as e:
            return Refused(400, str(e)).answer
        message = {"type": "Voice", "embeddings": codes.ravel().tolist(), "shape": list(np.shape(codes))}
        return web.Response(body=pack(message, single=True), content_type="application/msgpack")

    def _check_key(self, request: web.Request) -> None:
        if refused_key(request, self._token):
            raise Refused(401, unauthorised().text or "")

    @contextlib.asynccontextmanager
    async def _row(self, request: web.Request, service: Hearing | Speaking, options: Any) -> AsyncIterator[Reading]:
        try:
            reading = Reading(service.scheduler, options, request, self._counts[service.kind], live=False)
        except NoFreeRow:
            raise Refused(503, FULL, RETRY) from None
        except MoshiError as e:
            raise Refused(503, str(e)) from None
        async with reading:
            try:
                await reading.opened(ROW_SECONDS)
            except NoFreeRow:
                raise Refused(503, FULL, RETRY) from None
            except MoshiError as e:
                raise Refused(503, str(e)) from None
            yield reading


def _wav_of(item: Any) -> bytes:
    return b"" if item is None else to_int16(item.pcm).tobytes()


@contextlib.asynccontextmanager
async def _kept(request: web.Request, most: int) -> AsyncIterator[Path]:
    """The body in a temporary file."""
    with recordings.scratch() as folder:
        path = folder / "recording"
        try:
            size = await recordings.keep(request.content.iter_chunked(1 << 18), path, most)
        except recordings.TooLarge as e:
            raise Refused(413, str(e)) from None
        if not size:
            raise Refused(400, "there is no recording in the body.")
        yield path


async def _said(request: web.Request) -> tuple[str, str | None]:
    try:
        fields = await request.json()
        text, voice = fields["text"], fields.get("voice")
        text = " ".join(text) if isinstance(text, list) else text
        if not isinstance(text, str) or not (voice is None or isinstance(voice, str)):
            raise InputError("`text` and `voice` should be texts.")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, InputError):
        raise Refused(400, 'the body should be JSON such as {"text": "Hello there.", "voice": "a name"}.') from None
    if not text.strip() or len(text) > LONGEST_TEXT:
        raise Refused(400, f"`text` should have 1 to {LONGEST_TEXT} characters, found {len(text)}.")
    return text, voice
