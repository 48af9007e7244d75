"""`/v1/audio/speech`: text in one piece, speech as it is spoken. `/v1/audio/voices`: who can speak."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from ... import arguments
from ...audio.tempo import FASTEST, SLOWEST, Tempo
from ...text_to_speech.rows import Spoken
from ..listening import Gone
from ..metrics import Counts
from ..reading import Reading
from ..services import TTS, Services, Speaking
from . import encoders, models
from .encoders import Encoder
from .errors import bad, check
from .sending import EVENTS, Sending

LONGEST_INPUT = 100_000
# OpenAI's voices, which programs send that cannot be told another: the default voice.
USUAL_VOICES = frozenset((
    "alloy", "ash", "ballad", "cedar", "coral", "default", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer", "verse",
))  # fmt: skip
AUDIO, SSE = "audio", "sse"


@dataclass(frozen=True)
class Wanted:
    """A request, checked. `voice` None: the default one."""

    text: str
    voice: str | None
    form: str
    events: bool
    speed: float
    seed: int | None


class Speech:
    """The handlers."""

    def __init__(self, services: Services, counts: Mapping[str, Counts]):
        self._services, self._counts = services, counts

    async def voices(self, _: web.Request) -> web.Response:
        tts = self._services.tts
        names = sorted(tts.voices) if tts is not None else []
        return web.json_response({"voices": [{"id": n, "name": n} for n in names]})

    async def speak(self, request: web.Request) -> web.StreamResponse:
        body = await _object(request)
        tts = models.named(self._services, TTS, check("model", body.get("model"), arguments.kind, str, "a name"))
        assert isinstance(tts, Speaking)
        wanted = _wanted(body, tts)
        encoder = encoders.FORMATS[wanted.form]()
        sending = Sending(request, EVENTS if wanted.events else encoder.content_type)
        try:
            options = tts.make(wanted.voice, seed=wanted.seed)
            async with Reading(tts.scheduler, options, request, self._counts[TTS]) as reading:
                return await _spoken(sending, encoder, reading, wanted)
        except Gone:
            raise
        except Exception as e:
            return await sending.fail(e, wanted.events)
        finally:
            encoder.close()


async def _spoken(sending: Sending, encoder: Encoder, reading: Reading, wanted: Wanted) -> web.StreamResponse:
    frames = words = 0
    tempo = Tempo(wanted.speed)

    async def send(data: bytes) -> None:
        if not wanted.events:
            await sending.send(data)
        elif data:
            await sending.event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})

    reading.stream.say(wanted.text)
    reading.stream.finish()
    await reading.opened()
    item: Spoken
    async for item in reading.items():
        words += len(item.words)
        if len(item.pcm):
            frames += 1
            await send(encoder.encode(tempo.feed(item.pcm)))
    if not frames:
        raise bad("input holds nothing that can be spoken.", "input")
    await send(encoder.encode(tempo.finish()) + encoder.finish())
    if wanted.events:
        usage = {"input_tokens": words, "output_tokens": frames, "total_tokens": words + frames}
        await sending.event({"type": "speech.audio.done", "usage": usage})
    return await sending.end()


async def _object(request: web.Request) -> dict[str, Any]:
    """The body, a JSON object. Raises `ApiError`."""
    try:
        body = await request.json()
    except (ValueError, LookupError, RecursionError):
        raise bad("the body should be a JSON object.") from None
    if not isinstance(body, dict):
        raise bad(f"the body should be a JSON object, found {type(body).__name__}.")
    return body


def _wanted(body: dict[str, Any], tts: Speaking) -> Wanted:
    """Raises `ApiError` for fields that cannot be; those nobody knows are not looked at."""
    text = check("input", body.get("input"), arguments.kind, str, "the text to speak")
    if not text.strip():
        raise bad("input is empty; expected the text to speak.", "input")
    if len(text) > LONGEST_INPUT:
        raise bad(f"input may have {LONGEST_INPUT} characters, found {len(text)}.", "input", "string_above_max_length")
    form = body.get("response_format") or "mp3"
    check("response_format", form, arguments.one_of, tuple(encoders.FORMATS))
    stream = body.get("stream_format") or AUDIO
    check("stream_format", stream, arguments.one_of, (AUDIO, SSE))
    speed = 1.0 if body.get("speed") is None else check("speed", body["speed"], arguments.number, SLOWEST, FASTEST)
    seed = body.get("seed")
    if seed is not None:
        check("seed", seed, arguments.whole, 0, 2**32 - 1)
    return Wanted(text, _voice(body.get("voice"), tts), form, stream == SSE, speed, seed)


def _voice(voice: Any, tts: Speaking) -> str | None:
    """The name of one of our voices, None for the default one."""
    if isinstance(voice, dict):
        voice = voice.get("id")
    if voice is None or not tts.voices:
        return None
    check("voice", voice, arguments.kind, str, "the name of a voice")
    if tts.knows(voice):
        return voice
    if voice in USUAL_VOICES:
        return None
    some = ", ".join(sorted(tts.voices)[:20])
    raise bad(f"there is no voice {voice[:80]!r}; /v1/audio/voices lists them all: {some}.", "voice", "voice_not_found")
