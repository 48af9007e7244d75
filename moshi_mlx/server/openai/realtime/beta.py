"""Names from before the interface left its beta, for clients that ask for them (`OpenAI-Beta: realtime=v1`).

Sessions know the current ones alone: what such a client sends is put into them, what it gets is taken out of them.
"""

from __future__ import annotations

from typing import Any

from .events import FORMAT, Event

_TYPES = {
    "response.output_audio.delta": "response.audio.delta",
    "response.output_audio.done": "response.audio.done",
    "response.output_audio_transcript.delta": "response.audio_transcript.delta",
    "response.output_audio_transcript.done": "response.audio_transcript.done",
    "response.output_text.delta": "response.text.delta",
    "response.output_text.done": "response.text.done",
    "conversation.item.added": "conversation.item.created",
}
_SESSIONS = {"session.created": "transcription_session.created", "session.updated": "transcription_session.updated"}
_CONTENT = {"output_audio": "audio", "output_text": "text"}
_PCM = "pcm16"


def is_wanted(header: str, protocols: str) -> bool:
    """By the header `OpenAI-Beta`, or by the sub-protocol that browsers have in its place."""
    return "realtime=v1" in header.replace(" ", "").split(",") or "openai-beta.realtime-v1" in protocols.replace(
        " ", ""
    ).split(",")


def to_current(event: Event) -> Event:
    """A client's event."""
    kind = event["type"]
    if kind not in ("session.update", "transcription_session.update"):
        return event
    session = event.get("session")
    if not isinstance(session, dict):
        return {**event, "type": "session.update"}
    if "audio" in session:
        # It knows the current form.
        return event
    heard: dict[str, Any] = {}
    for old, new in (("input_audio_transcription", "transcription"), ("turn_detection", "turn_detection")):
        if old in session:
            heard[new] = session[old]
    if "input_audio_format" in session:
        heard["format"] = _format(session["input_audio_format"])
    said: dict[str, Any] = {}
    if "output_audio_format" in session:
        said["format"] = _format(session["output_audio_format"])
    if "voice" in session:
        said["voice"] = session["voice"]
    current = {k: session[k] for k in ("instructions", "tools") if k in session}
    if "modalities" in session:
        current["output_modalities"] = session["modalities"]
    return {**event, "type": "session.update", "session": {**current, "audio": {"input": heard, "output": said}}}


def _format(name: Any) -> Any:
    return FORMAT if name == _PCM else {"type": name}


def from_current(event: Event) -> Event:
    """An event of ours."""
    kind = event["type"]
    changed = {**event, "type": _TYPES.get(kind, kind)}
    if "session" in event:
        session = event["session"]
        if session["type"] == "transcription":
            changed["type"] = _SESSIONS.get(kind, kind)
        changed["session"] = _session(session)
    if "response" in event:
        response = event["response"]
        kept = {k: v for k, v in response.items() if k not in ("output_modalities", "audio", "output")}
        changed["response"] = {
            **kept,
            "output": [_item(i) for i in response["output"]],
            "modalities": _modalities(response["output_modalities"]),
            "voice": response["audio"]["output"]["voice"],
            "output_audio_format": _PCM,
        }
    if "item" in event:
        changed["item"] = _item(event["item"])
    return changed


def _session(session: Event) -> Event:
    heard = session["audio"]["input"]
    shared = {
        "id": session["id"],
        "object": session["object"],
        "input_audio_format": _PCM,
        "input_audio_transcription": heard["transcription"],
        "input_audio_noise_reduction": None,
        "turn_detection": heard["turn_detection"],
    }
    if session["type"] == "transcription":
        return shared
    return {
        **shared,
        "model": session["model"],
        "modalities": _modalities(session["output_modalities"]),
        "instructions": session["instructions"],
        "voice": session["audio"]["output"]["voice"],
        "output_audio_format": _PCM,
        "tools": [],
        "tool_choice": session["tool_choice"],
        "max_response_output_tokens": session["max_output_tokens"],
    }


def _modalities(wanted: list[str]) -> list[str]:
    """Sound came with its text."""
    return ["audio", "text"] if "audio" in wanted else wanted


def _item(item: Event) -> Event:
    content = [{**c, "type": _CONTENT.get(c["type"], c["type"])} for c in item["content"]]
    return {**item, "content": content}
