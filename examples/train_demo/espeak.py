"""espeak-ng through its C library: mono samples with exact word and phoneme onsets."""

import ctypes
from dataclasses import dataclass

import numpy as np

from moshi_mlx.errors import MoshiError

from . import phones
from .speech import Utterance, utterance

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples only through the callback
_PHONEME_EVENTS = 1  # option of espeak_Initialize
_END, _WORD, _PHONEME = 0, 1, 7  # espeak_EVENT_TYPE
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_UTF8_PHONEMES = 1 | 0x100  # espeakCHARS_UTF8 | espeakPHONEMES ([[...]] input)
_POS_CHARACTER = 1


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int), ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int), ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p), ("id", _EventId),
    ]  # fmt: skip


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class Voice:
    """How to speak: `name` is an espeak voice with optional variant, e.g. `en-us+f3`."""

    name: str
    rate: int = 160  # words per minute
    pitch: int = 50  # 0..99
    range: int = 50  # liveliness of the intonation, 0..99


class Espeak:
    """The synthesiser. The library has global state: make one per process."""

    def __init__(self):
        try:
            self._lib = ctypes.CDLL("libespeak-ng.so.1")
        except OSError:
            raise MoshiError("libespeak-ng not found; install it: apt install libespeak-ng1") from None
        self._rate = self._lib.espeak_Initialize(_SYNCHRONOUS, 0, None, _PHONEME_EVENTS)
        if self._rate <= 0:
            raise MoshiError("espeak-ng could not be initialised; is espeak-ng-data installed?")
        self._callback = _Callback(self._receive)  # kept alive: the library holds a raw pointer
        self._lib.espeak_SetSynthCallback(self._callback)
        self._voice: Voice | None = None
        self._chunks: list[np.ndarray] = []
        self._events: list[tuple[int, str | int, int]] = []

    @property
    def version(self) -> str:
        self._lib.espeak_Info.restype = ctypes.c_char_p
        return self._lib.espeak_Info(None).decode()

    def _receive(self, samples, count, events) -> int:
        if samples and count:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _END:
            event = events[i]
            if event.type == _WORD:
                self._events.append((_WORD, event.text_position, event.sample))
            elif event.type == _PHONEME:
                name = event.id.string.decode("utf-8", "replace")
                self._events.append((_PHONEME, name, event.sample))
            i += 1
        return 0

    def _select(self, voice: Voice) -> None:
        if voice == self._voice:
            return
        if self._lib.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.name!r}")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._lib.espeak_SetParameter(parameter, value, 0)
        self._voice = voice

    def say(self, text: str, voice: Voice, spelling: str | None = None) -> Utterance:
        """Speak `text`; `spelling` replaces what is given to the synthesiser."""
        self._select(voice)
        self._chunks, self._events = [], []
        data = (spelling or text).encode()
        status = self._lib.espeak_Synth(data, len(data) + 1, 0, _POS_CHARACTER, 0, _UTF8_PHONEMES, None, None)
        if status != 0 or not self._chunks:
            raise MoshiError(f"espeak-ng could not speak {text!r} (status {status})")
        source = spelling or text
        words = [
            (_word_at(source, p), s / self._rate)
            for kind, p, s in self._events
            if kind == _WORD and _begins_word(source, p)
        ]
        sounds = [(phones.of_espeak(p), s / self._rate) for kind, p, s in self._events if kind == _PHONEME and p]
        return utterance(text, np.concatenate(self._chunks), self._rate, words, sounds)


def _begins_word(text: str, position: int) -> bool:
    """Whether a word starts at the 1-based character `position`; the library also tells the last letter of some texts."""
    return position == 1 or text[position - 2 : position - 1].isspace()


def _word_at(text: str, position: int) -> str:
    """The word that starts at the 1-based character `position`."""
    rest = text[position - 1 :].split()
    return rest[0].rstrip(",") if rest else ""
