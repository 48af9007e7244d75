"""A translation session: sound goes in, its translation comes out as it is spoken, until the client says that it is over."""

from __future__ import annotations

import time

from ....engine.token_clock import UNGENERATED
from ....session.reply import Frame
from ...opus import Pcm
from ..errors import ApiError, bad
from .events import Control, Event, Received, decoded, encoded, error, inside, new_id, session_of, unknown, unsupported

TRANSLATION = "translation"
# The models of this family all speak English.
LANGUAGES = ("en", "english")
# Sessions do not expire; the field wants a moment.
A_YEAR = 365 * 86400


class Translation:
    """A session on a stream, which it ends."""

    patient, had_beta = True, False

    def __init__(self, model: str, stream: Control):
        self._model, self._stream = model, stream
        self._id, self._pcm = new_id("sess"), Pcm("pcm_s16le")
        self._closing = self._spoke = False
        self._expires = int(time.time()) + A_YEAR

    def begin(self) -> list[Event]:
        return [{"type": "session.created", "session": self._session()}]

    def _session(self) -> Event:
        return {
            "type": TRANSLATION,
            "id": self._id,
            "model": self._model,
            "expires_at": self._expires,
            "audio": {
                "input": {"noise_reduction": None, "transcription": None},
                "output": {"language": LANGUAGES[0]},
            },
        }

    def receive(self, event: Event) -> Received:
        kind = event["type"]
        if self._closing:
            raise bad("the session is being closed; nothing more is heard.", "type", "session_closing")
        if kind == "session.input_audio_buffer.append":
            return Received(pcm=decoded(event, self._pcm))
        if kind == "session.update":
            return Received(self._update(event))
        if kind == "session.close":
            self._closing = True
            self._stream.finish()
            return Received()
        raise unknown(event)

    def _update(self, event: Event) -> list[Event]:
        session_of(event, TRANSLATION)
        language = inside(event, "session", "audio", "output", "language")
        if language is not None and (
            not isinstance(language, str) or language.lower().partition("-")[0] not in LANGUAGES
        ):
            where = "session.audio.output.language"
            raise bad("this model translates into English.", where, "invalid_value")
        answers: list[Event] = [{"type": "session.updated", "session": self._session()}]
        if inside(event, "session", "audio", "input", "transcription"):
            where = "session.audio.input.transcription"
            answers.append(error(unsupported("a transcript of what is said", where), event))
        return answers

    def put(self, item: Frame) -> list[Event]:
        if item.text_token == UNGENERATED:
            return []
        when = {"elapsed_ms": round(1000 * item.time)}
        sound = {"delta": encoded(item.pcm), "format": "pcm16", "sample_rate": 24000, "channels": 1}
        events: list[Event] = [{"type": "session.output_audio.delta", **sound, **when}]
        if item.text:
            text = item.text if self._spoke else item.text.lstrip()
            self._spoke = True
            events.append({"type": "session.output_transcript.delta", "delta": text, **when})
        return events

    def end(self, e: ApiError | None) -> list[Event]:
        return [{"type": "session.closed"}] if e is None else [error(e)]
