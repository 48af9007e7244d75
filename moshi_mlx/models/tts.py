"""Import path of the published package; the code is in `text_to_speech`."""

from typing import TYPE_CHECKING

from ..lazy import hand_on

if TYPE_CHECKING:
    from ..text_to_speech.tts_model import DEFAULT_DSM_TTS_REPO as DEFAULT_DSM_TTS_REPO
    from ..text_to_speech.tts_model import DEFAULT_DSM_TTS_VOICE_REPO as DEFAULT_DSM_TTS_VOICE_REPO
    from ..text_to_speech.tts_model import Entry as Entry
    from ..text_to_speech.tts_model import State as State
    from ..text_to_speech.tts_model import StateMachine as StateMachine
    from ..text_to_speech.tts_model import TokenIds as TokenIds
    from ..text_to_speech.tts_model import TTSModel as TTSModel
    from ..text_to_speech.tts_model import TTSResult as TTSResult
    from ..text_to_speech.tts_model import script_to_entries as script_to_entries

_HOMES = {
    "DEFAULT_DSM_TTS_REPO": "..text_to_speech.tts_model",
    "DEFAULT_DSM_TTS_VOICE_REPO": "..text_to_speech.tts_model",
    "Entry": "..text_to_speech.tts_model",
    "State": "..text_to_speech.tts_model",
    "StateMachine": "..text_to_speech.tts_model",
    "TokenIds": "..text_to_speech.tts_model",
    "TTSModel": "..text_to_speech.tts_model",
    "TTSResult": "..text_to_speech.tts_model",
    "script_to_entries": "..text_to_speech.tts_model",
}
__all__ = [*_HOMES]
__getattr__ = hand_on(__name__, __package__, _HOMES)
