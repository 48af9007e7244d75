"""Speech to speech with a model that hears and speaks all the time: one response that never ends.

There are no turns to commit. For every 80 ms of sound that was appended comes one piece of the response's, silence included, and
text where there is some.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ....engine.token_clock import UNGENERATED
from ....session.reply import Frame
from ...opus import Pcm
from ..errors import ApiError, bad
from ..speech import USUAL_VOICES
from .events import (
    FORMAT,
    Event,
    Received,
    check_format,
    decoded,
    encoded,
    error,
    inside,
    new_id,
    session_of,
    unknown,
    unsupported,
)

REALTIME = "realtime"
AUDIO, TEXT = "audio", "text"
# A reply that was broken off is heard again after a pause: so many frames that are not louder.
PAUSE_FRAMES, QUIET = 4, 0.02
_NO_ITEMS = frozenset(("conversation.item.create", "conversation.item.delete", "conversation.item.retrieve"))


class Talk:
    """A session. `begin_anew(voice, instructions)` prepares another talk where the model has roles and voices (`persona`)."""

    patient, had_beta = False, True

    def __init__(self, model: str, persona: bool = False, begin_anew: Callable[[str | None, str], None] | None = None):
        self._model, self._persona, self._begin_anew = model, persona, begin_anew
        self._id, self._response, self._item = new_id("sess"), new_id("resp"), new_id("item")
        self._pcm = Pcm("pcm_s16le")
        self._modality, self._voice, self._instructions = AUDIO, "default", ""
        self._heard = self._begun = False
        self._text: list[str] = []
        # What the client gave the response to know it by.
        self._metadata: Event | None = None
        # Frames of quiet since the reply was broken off; None: it is heard.
        self._silenced: int | None = None

    def begin(self) -> list[Event]:
        return [{"type": "session.created", "session": self._session()}]

    def _session(self) -> Event:
        return {
            "type": REALTIME,
            "object": "realtime.session",
            "id": self._id,
            "model": self._model,
            "output_modalities": [self._modality],
            "instructions": self._instructions,
            "tools": [],
            "tool_choice": "none",
            "max_output_tokens": "inf",
            "audio": {
                "input": {"format": FORMAT, "transcription": None, "noise_reduction": None, "turn_detection": None},
                "output": {"format": FORMAT, "voice": self._voice, "speed": 1.0},
            },
        }

    # What the client sends ------------------------------------------------------------------------------------------

    def receive(self, event: Event) -> Received:
        kind = event["type"]
        if kind == "input_audio_buffer.append":
            pcm = decoded(event, self._pcm)
            self._heard = self._heard or len(pcm) > 0
            return Received(pcm=pcm)
        if kind == "session.update":
            return Received(self._update(event))
        if kind == "input_audio_buffer.commit":
            return Received(
                [{"type": "input_audio_buffer.committed", "item_id": new_id("item"), "previous_item_id": None}]
            )
        if kind == "input_audio_buffer.clear":
            return Received([{"type": "input_audio_buffer.cleared"}])
        if kind in ("response.cancel", "conversation.item.truncate"):
            self._silenced = 0
            return Received(self._truncated(event) if kind != "response.cancel" else [])
        if kind == "response.create":
            return Received(self._create(event))
        if kind == "output_audio_buffer.clear":
            # What was sent is with the client: none of it is kept here.
            return Received([{"type": "output_audio_buffer.cleared", "response_id": self._response}])
        if kind in _NO_ITEMS:
            raise unsupported("items of text", "type")
        raise unknown(event)

    def _create(self, event: Event) -> list[Event]:
        """The one response begins; where it has begun, the client is told so in the way in which it expects that."""
        metadata = inside(event, "response", "metadata")
        if metadata is not None and not (
            isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
        ):
            raise bad("response.metadata should be an object of texts.", "response.metadata", "invalid_type")
        if self._begun:
            raise bad(
                "the model speaks by itself, in one response that does not end; response.create begins no other.",
                code="conversation_already_has_active_response",
            )
        self._metadata = metadata
        return self._response_begins()

    def _update(self, event: Event) -> list[Event]:
        session = session_of(event, REALTIME)
        check_format(event, "session", "audio", "input", "format")
        check_format(event, "session", "audio", "output", "format")
        modality = self._modality_of(session.get("output_modalities"))
        voice, instructions = self._persona_of(event, session)
        if self._persona and (voice, instructions) != (self._voice, self._instructions):
            if self._heard:
                raise bad(
                    "voice and instructions are those that the talk began with.", "session", "cannot_update_voice"
                )
            if self._begin_anew is not None:
                self._begin_anew(None if voice in USUAL_VOICES else voice, instructions)
            self._voice, self._instructions = voice, instructions
        self._modality = modality
        answers: list[Event] = [{"type": "session.updated", "session": self._session()}]
        if session.get("tools"):
            answers.append(error(unsupported("tools", "session.tools"), event))
        return answers

    def _modality_of(self, wanted: Any) -> str:
        if wanted is None:
            return self._modality
        if not isinstance(wanted, list) or not wanted or any(m not in (AUDIO, TEXT) for m in wanted):
            where = "session.output_modalities"
            raise bad(f"{where} should be ['audio'] or ['text'].", where, "invalid_value")
        return AUDIO if AUDIO in wanted else TEXT

    def _persona_of(self, event: Event, session: Event) -> tuple[str, str]:
        """Voice and instructions after an update; those of a model that has neither stay as they are."""
        voice = inside(event, "session", "audio", "output", "voice")
        if isinstance(voice, dict):
            voice = voice.get("id")
        instructions = session.get("instructions")
        for where, value in (("session.audio.output.voice", voice), ("session.instructions", instructions)):
            if value is not None and not isinstance(value, str):
                raise bad(f"{where} should be text.", where, "invalid_type")
        if not self._persona:
            return self._voice, self._instructions
        return voice or self._voice, self._instructions if instructions is None else instructions

    def _truncated(self, event: Event) -> list[Event]:
        place = {
            name: event.get(name) if type(event.get(name)) is int else 0 for name in ("content_index", "audio_end_ms")
        }
        return [{"type": "conversation.item.truncated", "item_id": self._item, **place}]

    # What the model gives -------------------------------------------------------------------------------------------

    def put(self, item: Frame) -> list[Event]:
        generated = item.text_token != UNGENERATED
        events = self._response_begins()
        heard = generated and self._is_heard(item.pcm)
        place = self._place()
        if self._modality == AUDIO:
            pcm = item.pcm if heard else np.zeros_like(item.pcm)
            events.append({"type": "response.output_audio.delta", **place, "delta": encoded(pcm)})
        if heard and item.text:
            text = item.text if self._text else item.text.lstrip()
            self._text.append(text)
            events.append({"type": f"response.{self._text_kind}.delta", **place, "delta": text})
        return events

    def _is_heard(self, pcm: np.ndarray) -> bool:
        if self._silenced is None:
            return True
        quiet = float(np.abs(pcm).max(initial=0)) <= QUIET
        self._silenced = self._silenced + 1 if quiet else 0
        if self._silenced >= PAUSE_FRAMES:
            self._silenced = None
        return False

    @property
    def _text_kind(self) -> str:
        return "output_audio_transcript" if self._modality == AUDIO else "output_text"

    def _place(self) -> Event:
        return {"response_id": self._response, "item_id": self._item, "output_index": 0, "content_index": 0}

    def _response_begins(self) -> list[Event]:
        if self._begun:
            return []
        self._begun = True
        here, item = {"response_id": self._response, "output_index": 0}, self._message("in_progress", [])
        return [
            {"type": "response.created", "response": self._response_object("in_progress", [])},
            {"type": "response.output_item.added", **here, "item": item},
            {"type": "conversation.item.added", "previous_item_id": None, "item": item},
            {"type": "response.content_part.added", **self._place(), "part": self._part("")},
        ]

    def _part(self, text: str) -> Event:
        return {"type": AUDIO, "transcript": text} if self._modality == AUDIO else {"type": TEXT, "text": text}

    def _message(self, status: str, content: list[Event]) -> Event:
        return {
            "id": self._item, "object": "realtime.item", "type": "message", "status": status, "role": "assistant", "content": content,
        }  # fmt: skip

    def _response_object(self, status: str, output: list[Event], details: Event | None = None) -> Event:
        return {
            "id": self._response,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": output,
            "output_modalities": [self._modality],
            "audio": {"output": {"format": FORMAT, "voice": self._voice}},
            "usage": None,
            "metadata": self._metadata,
        }

    def end(self, e: ApiError | None) -> list[Event]:
        told = [] if e is None else [error(e)]
        if not self._begun:
            return told
        text, place = "".join(self._text), self._place()
        spoken = self._modality == AUDIO
        content = {"type": "output_audio", "transcript": text} if spoken else {"type": "output_text", "text": text}
        item = self._message("completed" if e is None else "incomplete", [content])
        here = {"response_id": self._response, "output_index": 0, "item": item}
        status = "completed" if e is None else "failed"
        details = (
            None if e is None else {"type": status, "error": {"type": e.kind, "code": e.code, "message": e.message}}
        )
        return [
            *([{"type": "response.output_audio.done", **place}] if spoken else []),
            {"type": f"response.{self._text_kind}.done", **place, "transcript" if spoken else "text": text},
            {"type": "response.content_part.done", **place, "part": self._part(text)},
            {"type": "response.output_item.done", **here},
            {"type": "response.done", "response": self._response_object(status, [item], details)},
            *told,
        ]
