"""Import path of the published package; the code is in `text_to_speech`."""

from ..text_to_speech.tts_model import (
    DEFAULT_DSM_TTS_REPO,
    DEFAULT_DSM_TTS_VOICE_REPO,
    Entry,
    State,
    StateMachine,
    TokenIds,
    TTSModel,
    TTSResult,
    script_to_entries,
)

__all__ = [
    "DEFAULT_DSM_TTS_REPO",
    "DEFAULT_DSM_TTS_VOICE_REPO",
    "Entry",
    "State",
    "StateMachine",
    "TTSModel",
    "TTSResult",
    "TokenIds",
    "script_to_entries",
]
