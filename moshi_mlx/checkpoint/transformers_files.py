"""Folders of transformers that hold a whole speech model: what is kept beside `config.json`, and two models in one weights file."""

from __future__ import annotations

from typing import Any, TypeVar

import mlx.core as mx

from ..config.json_text import read_json
from ..config.transformers_config import CODEC_PREFIXES
from ..errors import ConfigError, quoted
from .layouts.transformers_lm import FAMILIES, detect
from .places import Place
from .weights_file import WeightsFile

# The sentencepiece model is there where no `tokenizer.json` cuts text as it does.
TOKENIZER_NAMES = ("tokenizer.model", "tokenizer.json")

_File = TypeVar("_File", bound=WeightsFile)


def with_speech_config(data: dict[str, Any], place: Place) -> dict[str, Any]:
    """A configuration with what speech-to-text models keep beside it: how sound is prepared."""
    if data.get("model_type") != "kyutai_speech_to_text":
        return data
    path = place.find("preprocessor_config.json", optional=True)
    features = {} if path is None else read_json(path)
    keys = ("audio_delay_seconds", "audio_silence_prefix_seconds")
    return {**data, "stt_config": {key: features[key] for key in keys if key in features}}


def check_description(file: WeightsFile, said: Any) -> None:
    """Raise `ConfigError` where the layout of the weights is not that of the configuration's `model_type`.

    `said` is None where there is no configuration, or one of Kyutai's.
    """
    found = detect(file)
    if found is None:
        if said in [*FAMILIES] and "text_emb.weight" in file:
            raise ConfigError(
                f"config.json is one of transformers ({said}), but {file.path} has Kyutai's layout; "
                "name the right one with --lm-config."
            )
        return
    expected = ("helium", "llama") if found == "text" else (found,)
    if said not in expected:
        words = f"says {quoted(said)}" if said else "is missing or says nothing of it"
        raise ConfigError(
            f"{file.path} has the layout of transformers' {' or '.join(expected)}, but config.json {words}; "
            "name the right one with --lm-config."
        )


def codec_inside(file: _File, architecture: str | None) -> tuple[_File, _File | None]:
    """The tensors of the language model and, where a file of transformers holds it too, of the codec."""
    prefix = CODEC_PREFIXES.get(architecture or "")
    codec = file.part(prefix) if prefix else None
    return (file.without(prefix), codec) if prefix and codec else (file, None)


def text_rows(file: WeightsFile, text_card: int) -> int:
    """Rows of a speech-to-text head: one more than the model was trained with, which is left out where it says nothing."""
    name, rows = "lm_head.weight", text_card + 1
    if name not in file or file.shape(name)[:1] != (rows,):
        return text_card
    used = mx.any(file.array(name)[-1] != 0).item()
    file.close()
    return rows if used else text_card
