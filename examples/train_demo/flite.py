"""flite through its C library: mono samples with word and phone onsets."""

import ctypes

import numpy as np

from moshi_mlx.errors import MoshiError

from . import phones
from .speech import Utterance, utterance

VOICES = ("kal", "kal16", "awb", "rms", "slt")
_WORD_START = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
_Item = ctypes.c_void_p


class _Wave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p), ("rate", ctypes.c_int), ("count", ctypes.c_int), ("channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]  # fmt: skip


class _Voice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class Flite:
    """The synthesiser; voices are loaded when they first speak."""

    def __init__(self):
        try:
            self._lib = ctypes.CDLL("libflite.so.1")
        except OSError:
            raise MoshiError("libflite not found; install it: apt install libflite1") from None
        lib = self._lib
        text, number = ctypes.c_char_p, ctypes.c_float
        for name, result, *arguments in (
            ("flite_synth_text", _Item, text, _Item), ("utt_relation", _Item, _Item, text),
            ("relation_head", _Item, _Item), ("item_next", _Item, _Item), ("utt_wave", _Item, _Item),
            ("item_feat_string", text, _Item, text), ("item_feat_float", number, _Item, text),
            ("flite_ffeature_float", number, _Item, text), ("delete_utterance", None, _Item),
            ("flite_feat_set_float", None, _Item, text, number),
        ):  # fmt: skip
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
        lib.flite_init()
        self._voices: dict[str, int] = {}

    def _voice(self, name: str) -> int:
        if name not in self._voices:
            register = getattr(ctypes.CDLL(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
            register.restype, register.argtypes = _Item, [ctypes.c_char_p]
            self._voices[name] = register(None)
        return self._voices[name]

    def say(self, text: str, voice: str, stretch: float = 1.0) -> Utterance:
        """Speak `text` with one of `VOICES`, `stretch` times as slowly as it is used to."""
        lib, found = self._lib, self._voice(voice)
        lib.flite_feat_set_float(
            ctypes.cast(found, ctypes.POINTER(_Voice)).contents.features, b"duration_stretch", stretch
        )
        spoken = lib.flite_synth_text(text.encode(), found)
        words = [(lib.item_feat_string(i, b"name").decode(), lib.flite_ffeature_float(i, _WORD_START))
                 for i in self._items(spoken, b"Word")]  # fmt: skip
        sounds, at = [], 0.0
        for item in self._items(spoken, b"Segment"):
            sounds.append((phones.of_festival(lib.item_feat_string(item, b"name").decode()), at))
            at = lib.item_feat_float(item, b"end")
        wave = ctypes.cast(lib.utt_wave(spoken), ctypes.POINTER(_Wave)).contents
        raw, rate = np.ctypeslib.as_array(wave.samples, (wave.count,)).copy(), wave.rate
        lib.delete_utterance(spoken)
        return utterance(text, raw, rate, words, sounds)

    def _items(self, spoken: int, relation: bytes):
        item = self._lib.relation_head(self._lib.utt_relation(spoken, relation))
        while item:
            yield item
            item = self._lib.item_next(item)
