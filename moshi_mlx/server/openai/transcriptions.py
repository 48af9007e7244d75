"""`/v1/audio/transcriptions`: a recording in, its words out, at the end or as they are heard."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from ... import arguments
from ...speech_to_text.collected import Collected
from ...speech_to_text.rows import HeardFrame
from ...speech_to_text.transcribe import Transcript
from .. import recordings
from ..chat import without_folders
from ..listening import Gone
from ..metrics import Counts
from ..reading import Reading
from ..services import STT, Hearing, Services
from . import formats, models, uploads
from .errors import bad, check
from .sending import EVENTS, Sending

_TRUE, _FALSE = ("true", "1"), ("false", "0")


@dataclass
class Wanted:
    """A request, checked. `granularities`: what is timed in `verbose_json`."""

    form: str
    stream: bool
    language: str
    granularities: list[str]


class Transcriptions:
    """The handler."""

    def __init__(self, services: Services, counts: Mapping[str, Counts]):
        self._services, self._counts = services, counts

    async def transcribe(self, request: web.Request) -> web.StreamResponse:
        with recordings.scratch() as folder:
            form = await uploads.receive(request, folder)
            stt = models.named(self._services, STT, check("model", form.get("model"), arguments.kind, str, "a name"))
            assert isinstance(stt, Hearing)
            wanted = _wanted(form)
            if form.file is None:
                raise bad("there is no file; send the recording as the field `file`, with a name.", "file")
            sending = Sending(request, EVENTS)
            try:
                return await self._answer(sending, request, stt, form.file, wanted)
            except Gone:
                raise
            except Exception as e:
                return await sending.fail(e, wanted.stream)

    async def _answer(
        self, sending: Sending, request: web.Request, stt: Hearing, file: Path, wanted: Wanted
    ) -> web.StreamResponse:
        collected = Collected()
        notes: list[str] = []
        # What cannot be read is told before a row is waited for.
        await asyncio.to_thread(recordings.look_at, file)
        async with Reading(stt.scheduler, stt.make(), request, self._counts[STT], live=False) as reading:
            await reading.opened()
            feeding = asyncio.create_task(recordings.feed(reading.stream, file, notes.append))
            try:
                first = True
                item: Any
                async for item in reading.items():
                    words = collected.feed(item.events) if isinstance(item, HeardFrame) else []
                    for word in words if wanted.stream else ():
                        await sending.event({"type": "transcript.text.delta", "delta": word if first else f" {word}"})
                        first = False
            finally:
                reading.stream.close()
                await asyncio.gather(feeding, return_exceptions=True)
            samples = feeding.result()
        bounds = reading.stream.bounds
        transcript = collected.transcript(
            file.name, samples / bounds.sample_rate, bounds.frame_size / bounds.sample_rate
        )
        if wanted.stream:
            done = {"type": "transcript.text.done", "text": transcript.text}
            await sending.event({**done, **_told(notes)})
            return await sending.end()
        return _response(transcript, wanted, notes)


def _response(transcript: Transcript, wanted: Wanted, notes: list[str]) -> web.Response:
    if wanted.form in formats.PLAIN:
        text, content_type = formats.plain(transcript, wanted.form)
        return web.Response(text=text, content_type=content_type, charset="utf-8")
    if wanted.form == formats.VERBOSE:
        body = formats.verbose(transcript, wanted.language, wanted.granularities)
    else:
        body = formats.short(transcript)
    return web.json_response({**body, **_told(notes)}, dumps=functools.partial(json.dumps, ensure_ascii=False))


def _told(notes: list[str]) -> dict[str, str]:
    """What an answer says of the recording beside the words: that its end is missing."""
    return {"warning": without_folders(notes[0])} if notes else {}


def _wanted(form: uploads.Form) -> Wanted:
    """Raises `ApiError` for fields that cannot be; those nobody knows are not looked at."""
    name = form.get("response_format") or formats.JSON
    check("response_format", name, arguments.one_of, formats.NAMES)
    # Other formats have their times or none, whatever is wanted of this one.
    granularities = form.all("timestamp_granularities") if name == formats.VERBOSE else []
    for granularity in granularities:
        check("timestamp_granularities", granularity, arguments.one_of, formats.GRANULARITIES)
    if (temperature := form.get("temperature")) is not None:
        try:
            value: Any = float(temperature)
        except ValueError:
            value = temperature
        check("temperature", value, arguments.number, 0, 1)
    stream = form.get("stream") or "false"
    check("stream", stream.lower(), arguments.one_of, (*_TRUE, *_FALSE))
    return Wanted(name, stream.lower() in _TRUE, form.get("language") or "", granularities or [*formats.GRANULARITIES])
