"""The whole `config.json` of a checkpoint folder: file names, the language model, defaults of each use (lm.md 1.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import ConfigError, quoted
from . import transformers_config
from .json_objects import read_lm, read_mimi
from .parts import MODEL_TYPES, LmConfig, LutConditionerConfig, MimiConfig, TensorConditionerConfig
from .presets import MIMI_NAME, MOSHI_7B, MOSHI_NAME, PERSONAPLEX_7B, TOKENIZER_NAME
from .reader import REQUIRED, Reader
from .transformers_config import CODEC_PREFIXES, TEXT_ARCHITECTURES


@dataclass
class Generation:
    """Sampling defaults a checkpoint ships with (`lm_gen_config`); temperatures of 0 mean greedy."""

    temp: float = 0.8
    temp_text: float = 0.7
    top_k: int = 250
    top_k_text: int = 25

    @classmethod
    def from_dict(cls, data: dict) -> Generation:
        reader = Reader(data, "config: 'lm_gen_config'")
        number = (int, float)
        # The published TTS 1.6B file spells the text temperature the other way round.
        other_spelling = reader.take("text_temp", number, cls.temp_text, low=0)
        return cls(
            temp=float(reader.take("temp", number, cls.temp, low=0)),
            temp_text=float(reader.take("temp_text", number, other_spelling, low=0)),
            top_k=reader.take("top_k", int, cls.top_k, low=0),
            top_k_text=reader.take("top_k_text", int, cls.top_k_text, low=0),
        )


@dataclass
class SttConfig:
    """Speech-to-text: silence to prepend and the delay of the text behind the audio, both in seconds."""

    audio_delay_seconds: float = 0.0
    audio_silence_prefix_seconds: float = 0.0


@dataclass
class TtsConfig:
    """Text-to-speech: delay of the audio behind the text in seconds, and words of look-ahead (0: none)."""

    audio_delay: float
    second_stream_ahead: int = 0
    max_speakers: int = 5
    multistream: bool = False


@dataclass
class CheckpointConfig:
    """Everything a checkpoint folder says about itself. File names may also be `hf://owner/repo/file`."""

    lm: LmConfig
    moshi_name: str = MOSHI_NAME
    mimi_name: str = MIMI_NAME
    tokenizer_name: str = TOKENIZER_NAME
    mimi_config_name: str | None = None
    lora_name: str | None = None
    model_type: str = "moshi"
    generation: Generation = field(default_factory=Generation)
    stt: SttConfig | None = None
    tts: TtsConfig | None = None
    model_id: dict[str, Any] = field(default_factory=dict)
    int8: bool = False
    lora: bool = False
    lora_rank: int = 128
    lora_scaling: float = 2.0
    quantization: dict[str, Any] | None = None
    # The configuration says nothing of the model: it was taken from what is known of old checkpoints.
    legacy: bool = False
    # The `model_type` of a configuration of transformers, whose names the weights then have, and the codec it describes.
    architecture: str | None = None
    codec: MimiConfig | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_dict(cls, data: dict) -> CheckpointConfig:
        """Parse the object of a `config.json`; one without `dim` describes no model and means Moshi 7B (family.md 0.1).

        That of a speech model of transformers is read as what it says in Kyutai's terms, which are then `raw`.
        """
        legacy = isinstance(data, dict) and "dim" not in data and not is_foreign(data)
        if legacy:
            described = sorted(_MODEL_KEYS & set(data))
            if described:
                raise ConfigError(f"config describes a model ({described[0]!r}) but lacks the required key 'dim'.")
            known = PERSONAPLEX_7B if data.get("model_type") == "personaplex" else MOSHI_7B
            data = {**known, **{k: v for k, v in data.items() if k in _OUTER_KEYS}}
        if is_foreign(data):
            return _of_transformers(data)
        reader = Reader(data, "config")
        take = reader.take
        text = (str, type(None))
        model_type = take("model_type", str, "moshi", one_of=MODEL_TYPES)
        cfg = cls(
            lm=read_lm(reader, model_type),
            moshi_name=take("moshi_name", text, None) or MOSHI_NAME,
            mimi_name=take("mimi_name", text, None) or MIMI_NAME,
            tokenizer_name=take("tokenizer_name", text, None) or TOKENIZER_NAME,
            mimi_config_name=take("mimi_config_name", text, None),
            lora_name=take("lora_name", text, None),
            model_type=model_type,
            generation=Generation.from_dict(take("lm_gen_config", dict, {})),
            stt=_stt(take("stt_config", (dict, type(None)), None)),
            tts=_tts(take("tts_config", (dict, type(None)), None)),
            model_id=take("model_id", (dict, type(None)), None) or {},
            int8=take("quantize", bool, False),
            lora=take("lora", bool, False),
            lora_rank=take("lora_rank", int, 128, low=1),
            lora_scaling=float(take("lora_scaling", (int, float), 2.0)),
            quantization=_quantization(take("quantization", (dict, type(None)), None)),
            legacy=legacy,
            raw=dict(data),
        )
        reader.ignore(*BOOKKEEPING)
        reader.finish()
        if cfg.tts is not None:
            _check_speaking(cfg.lm.conditioners)
        return cfg

    @property
    def kind(self) -> str:
        """What is done with it: moshi, personaplex, hibiki, stt, tts or helium."""
        if self.tts is not None:
            return "tts"
        if not self.lm.n_q:
            return "helium"
        if not self.lm.dep_q:
            return "stt"
        if self.is_personaplex:
            return "personaplex"
        return "hibiki" if self.model_type == "hibiki" else "moshi"

    @property
    def is_personaplex(self) -> bool:
        """Whether the model takes prompts: it says so, or its depth transformer predicts the user's codebooks too (family.md 5)."""
        lm, half = self.lm, self.lm.n_q // 2
        if self.model_type != "moshi":
            return self.model_type == "personaplex"
        mirrored = lm.delays[1 : 1 + half] == lm.delays[1 + half :]
        return lm.dep_q == lm.n_q == 2 * half > 0 and mirrored and self.tts is None and not lm.conditioners


def as_personaplex(cfg: LmConfig) -> LmConfig:
    """A PersonaPlex model as it is run (family.md 5.1).

    Without the depth steps that predict the user: they come after the model's own and are always overruled by what the user
    said, so leaving them out changes nothing that is heard, and half of the depth transformer need not be loaded. And with the
    window of NVIDIA's implementation, whose full ring hides its oldest entry.
    """
    half, dep, window = cfg.n_q // 2, cfg.depformer, cfg.transformer.context
    if window is not None:
        cfg = replace(cfg, transformer=replace(cfg.transformer, context=max(window - 1, 1)))
    if cfg.dep_q <= half:
        return cfg
    heard = replace(dep, weight_sets=dep.weight_sets[:half], input_sets=dep.input_sets[:half])
    return replace(cfg, depformer=replace(heard, num_slices=half, stored_slices=cfg.dep_q))


# Notes of converters about where a folder came from, what mlx-lm writes beside `quantization`, and what transformers and the Hub
# add to any configuration that passes through their hands.
BOOKKEEPING = (
    "quantization_config", "source", "license", "architectures", "_name_or_path", "_commit_hash", "_attn_implementation",
    "_attn_implementation_autoset", "attn_implementation", "auto_map", "torch_dtype", "transformers_version",
    "transformers.js_config", "tie_word_embeddings", "use_cache", "is_encoder_decoder", "initializer_range", "output_attentions",
    "output_hidden_states", "return_dict", "use_return_dict", "problem_type", "id2label", "label2id", "library_name", "tags",
    "pipeline_tag", "base_model",
)  # fmt: skip

_OUTER_KEYS = {
    "moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "lora_name", "model_type", "lm_gen_config",
    "model_id", "quantize", "lora", "lora_rank", "lora_scaling", "quantization",
}  # fmt: skip

LONGEST_DELAY_S = 60

# Conditions that a text-to-speech model is given by name: a voice, the guidance, and that all is well.
_SPEAKING: tuple[tuple[str, type, str], ...] = (
    ("speaker_wavs", TensorConditionerConfig, "tensor"),
    ("cfg", LutConditionerConfig, "lut"),
    ("control", LutConditionerConfig, "lut"),
)

# One of these, and the configuration is meant to describe a model.
_MODEL_KEYS = {"num_layers", "num_heads", "card", "text_card", "n_q", "dep_q", "delays", "context", "depformer_dim"}


def is_foreign(data: dict) -> bool:
    """True for a `transformers` configuration."""
    return "dim" not in data and ("hidden_size" in data or "audio_encoder_config" in data or "codec_config" in data)


def _of_transformers(data: dict) -> CheckpointConfig:
    kind = data.get("model_type")
    # A list, not the tables: whatever a file says can be looked for in it.
    if kind not in [*CODEC_PREFIXES]:
        how = ": text models run with python -m moshi_mlx.run_helium" if kind in TEXT_ARCHITECTURES else ""
        raise ConfigError(
            f"config: this is a transformers configuration of the model_type {quoted(kind)}, expected {' or '.join(CODEC_PREFIXES)}{how}."
        )
    codec = transformers_config.codec_config(data)
    config = CheckpointConfig.from_dict({**transformers_config.lm_config(data), "tokenizer_name": "tokenizer.json"})
    return replace(config, architecture=kind, codec=None if codec is None else read_mimi(codec, "mimi config"))


def _seconds(reader: Reader, key: str, default: Any = REQUIRED) -> float:
    """A delay. What a damaged file says would be that much silence in memory, so it ends at a minute; published are up to 2.5 s."""
    return float(reader.take(key, (int, float), default, low=0, high=LONGEST_DELAY_S))


def _stt(data: dict | None) -> SttConfig | None:
    if not data:
        return None
    reader = Reader(data, "config: 'stt_config'")
    cfg = SttConfig(
        audio_delay_seconds=_seconds(reader, "audio_delay_seconds", 0.0),
        audio_silence_prefix_seconds=_seconds(reader, "audio_silence_prefix_seconds", 0.0),
    )
    reader.finish()
    return cfg


def _tts(data: dict | None) -> TtsConfig | None:
    if not data:
        return None
    reader = Reader(data, "config: 'tts_config'")
    cfg = TtsConfig(
        audio_delay=_seconds(reader, "audio_delay"),
        second_stream_ahead=reader.take("second_stream_ahead", int, 0, low=0),
        max_speakers=reader.take("max_speakers", int, 5, low=1),
        multistream=reader.take("multistream", bool, False),
    )
    reader.finish()
    return cfg


def _check_speaking(conditioners: Mapping[str, LutConditionerConfig | TensorConditionerConfig]) -> None:
    """Conditions of a text-to-speech model are of the kinds that it is told them in (family.md 2.1)."""
    for name, kind, word in _SPEAKING:
        if not isinstance(conditioners.get(name), (kind, type(None))):
            raise ConfigError(
                f"config: the conditioner {name!r} of a text-to-speech model should be of the type {word!r}."
            )
    guidance = conditioners.get("cfg")
    values = guidance.possible_values if isinstance(guidance, LutConditionerConfig) else None
    if values is not None and not (values and all(re.fullmatch(r"\d+\.\d", v, re.ASCII) for v in values)):
        raise ConfigError(
            "config: conditioner 'cfg': 'possible_values' should be guidance coefficients with one decimal, such as \"2.0\", "
            f"found {quoted(values)}."
        )


def _quantization(data: dict | None) -> dict[str, Any] | None:
    """The mlx-lm convention: `group_size`, `bits`, `mode`, then one entry per layer path that differs (false: dense)."""
    if data is None:
        return None
    for key in ("group_size", "bits"):
        if not isinstance(data.get(key), int):
            raise ConfigError(
                f"config: 'quantization' should say {key!r} as an integer, found {quoted(data.get(key))}."
            )
    for key, value in data.items():
        if key not in ("group_size", "bits", "mode") and not isinstance(value, (dict, bool)):
            raise ConfigError(
                f"config: 'quantization' entry {quoted(key)} should be an object or false, found {quoted(value)}."
            )
    return data


def _from_config_dict(data: dict) -> LmConfig:
    """Build from the content of a `config.json`, file names and options of other parts included."""
    return CheckpointConfig.from_dict(data).lm


# What scripts of the published package call on the dataclasses, which know nothing of JSON themselves.
LmConfig.from_config_dict = staticmethod(_from_config_dict)
MimiConfig.from_dict = staticmethod(read_mimi)
