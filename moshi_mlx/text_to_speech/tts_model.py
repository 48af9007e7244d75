"""`TTSModel`: a text-to-speech checkpoint under the names of the published package (family.md section 2).

Code of our own uses `TTSModel.speech`, which takes text while it is being written and gives sound while it is being made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from .. import arguments
from ..compat.mimi import Mimi
from ..config.description import CheckpointConfig
from ..defaults import TTS_TEMPERATURE, VOICE_REPO
from ..engine.row_state import Manner
from ..engine.step import Conditions, make_conditions
from ..errors import ConfigError, InputError
from ..models.lm_model import LmModel
from ..models.mimi_model import MimiModel
from ..modules.conditioner import ConditionAttributes, TensorConditioner, dropout_all_conditions
from ..modules.sampling import Sampler
from . import voices as voice_files
from .generator import ArrayHook, TokenGenerator
from .machine import Entry, State, StateMachine, TokenIds
from .script import ScriptReader, script_to_entries
from .speech import Speech

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

    from ..checkpoint.loader import Checkpoint

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

DEFAULT_DSM_TTS_REPO = "kyutai/tts-1.6b-en_fr"
DEFAULT_DSM_TTS_VOICE_REPO = VOICE_REPO
# Conditions of recent requests are kept: projecting a voice takes longer than a step.
_CONDITIONS_KEPT = 8


@dataclass
class TTSResult:
    """Outcome of `TTSModel.generate` for a batch.

    `frames`: audio codes `[B, codebooks, 1]` of each frame with sound, the voice prefix included. `end_steps`: the step at
    which each text was finished, None where `max_gen_length` came first. `all_consumption_times`: the step of every entry,
    and `all_transcripts` word and step; step / 12.5 is about the word's time in the sound of `frames`.
    `logged_text_tokens`: sampled token and the token in its place.
    """

    frames: list[mx.array]
    logged_text_tokens: list[list[tuple[int, int]]]
    end_steps: list[int | None]
    all_consumption_times: list[list[int]]
    all_transcripts: list[list[tuple[str, int]]]


class TTSModel:
    """A language model, its codec and its tokenizer, and how to speak with them. Attributes may be changed at any time.

    `temp`, `cfg_coef`: temperature of text and audio, coefficient of real guidance (models with `valid_cfg_conditionings`
    take theirs as a condition instead). `n_q`: codebooks to generate, at most the model's. `padding_bonus`: added to the
    logit of PAD, above 0 slows speech down. Paddings and `max_gen_length` in steps of 80 ms.
    """

    default_temp: float = TTS_TEMPERATURE
    max_speakers: int = 5
    text_top_k: int = 25
    audio_top_k: int = 250

    def __init__(
        self,
        lm: LmModel,
        mimi: MimiModel,
        tokenizer: SentencePieceProcessor,
        temp: float = default_temp,
        cfg_coef: float = 1.0,
        final_padding: int = 4,
        n_q: int = 32,
        max_gen_length: int = 30000,
        padding_bonus: float = 0.0,
        initial_padding: int = 2,
        max_padding: int = 8,
        voice_repo: str = DEFAULT_DSM_TTS_VOICE_REPO,
        raw_config: dict | None = None,
    ):
        config = CheckpointConfig.from_dict(raw_config or {})
        if config.tts is None:
            raise ConfigError(
                f"config: this is a {config.model_type} model; text-to-speech needs one with 'tts_config', "
                f"such as {DEFAULT_DSM_TTS_REPO}."
            )
        arguments.number("temp", temp, 0)
        arguments.number("cfg_coef", cfg_coef)
        arguments.number("padding_bonus", padding_bonus)
        arguments.whole("n_q", n_q, 1)
        arguments.whole("max_gen_length", max_gen_length, 1)
        for name, steps in (("final", final_padding), ("initial", initial_padding), ("max", max_padding)):
            arguments.whole(f"{name}_padding", steps, 0)
        self.lm, self.mimi, self.tokenizer = lm, mimi, tokenizer
        self.temp, self.cfg_coef, self.n_q = temp, cfg_coef, n_q
        self.text_temp: float | None = None
        self.final_padding, self.padding_bonus = final_padding, padding_bonus
        self.max_gen_length = max_gen_length
        self.max_speakers = config.tts.max_speakers
        self.model_id = config.model_id
        self.voice_repo = voice_repo
        self.voice_suffix = voice_files.suffix_of(self.model_id)
        self.delay_steps = int(config.tts.audio_delay * mimi.frame_rate)
        self.machine = StateMachine(
            TokenIds(lm.cfg.text_card + 1), config.tts.second_stream_ahead, max_padding, initial_padding
        )
        self._conditions: dict[tuple[int, ...], tuple[list[ConditionAttributes], Conditions]] = {}

    @classmethod
    def from_checkpoint(cls, loaded: Checkpoint, **options: Any) -> TTSModel:
        """Build from a loaded checkpoint; `options` are those of the constructor. Its own folder of voices is looked in by default."""
        if loaded.mimi is None or loaded.tokenizer is None:
            raise InputError("text-to-speech needs the checkpoint's codec and tokenizer.")
        options.setdefault("voice_repo", voice_files.repo_of(loaded.files))
        return cls(loaded.lm, loaded.mimi, loaded.tokenizer, raw_config=loaded.config.raw, **options)

    @property
    def codebooks(self) -> int:
        """Codebooks that are generated."""
        return min(self.n_q, self.lm.dep_q)

    @cached_property
    def valid_cfg_conditionings(self) -> set[float]:
        """Guidance coefficients a model with built-in guidance was trained with; empty for other models."""
        provider = self.lm.condition_provider
        if provider is None or "cfg" not in provider.conditioners:
            return set()
        return {float(value) for value in provider.conditioners["cfg"].possible_values or ()}

    @property
    def multi_speaker(self) -> bool:
        """Whether voices are embeddings, one per speaker; else the voice is that of a clip to be continued."""
        return self.lm.condition_provider is not None and voice_files.TENSOR in self.lm.condition_provider.conditioners

    # What is said, and by whom ----------------------------------------------------------------------------------

    def prepare_script(self, script: Sequence[str], padding_between: int = 0) -> list[Entry]:
        """Entries of a script of turns, see `script_to_entries`."""
        return script_to_entries(
            self.tokenizer, self.machine.token_ids, self.mimi.frame_rate, script, self.multi_speaker, padding_between
        )

    def get_voice_path(self, voice_name: str) -> Path:
        """Local file of a voice: of the voice repository, a local one, or `hf://owner/repo/path`."""
        return voice_files.find_voice(voice_name, self.voice_repo, self.voice_suffix if self.multi_speaker else "")

    def make_condition_attributes(
        self, voices: Sequence[str | Path | np.ndarray] = (), cfg_coef: float | None = None
    ) -> ConditionAttributes:
        """Conditions of one utterance: voice files or embeddings `[1, dim, T]`, main speaker first, and the guidance of models that
        have it built in.
        """
        provider = self.lm.condition_provider
        conditioners = {} if provider is None else provider.conditioners
        if voices and not self.multi_speaker:
            raise InputError("this model takes no voice embeddings; its voice is that of an audio prefix.")
        text: dict[str, str | None] = {"control": "ok"} if "control" in conditioners else {}
        if "cfg" in conditioners:
            if cfg_coef is not None and cfg_coef not in self.valid_cfg_conditionings:
                valid = ", ".join(str(v) for v in sorted(self.valid_cfg_conditionings))
                raise InputError(f"this model knows the guidance coefficients {valid}; found {cfg_coef}.")
            text["cfg"] = None if cfg_coef is None else format(cfg_coef, ".1f")
        tensors = {}
        if voices:
            speaker = conditioners[voice_files.TENSOR]
            assert isinstance(speaker, TensorConditioner)
            loaded = [
                voice_files.speaker_of(v, speaker.dim)
                if isinstance(v, np.ndarray)
                else voice_files.load_speaker(v, speaker.dim, self.model_id)
                for v in voices
            ]
            tensors[voice_files.TENSOR] = voice_files.speaker_condition(loaded, self.max_speakers)
        return ConditionAttributes(text=text, tensor=tensors)

    def get_prefix(self, audio_path: str | Path) -> mx.array:
        """A clip to be continued, `[1 + codebooks, T]`, for models without voice embeddings."""
        window = self.lm.cfg.transformer.context
        return voice_files.audio_prefix(self.mimi, audio_path, self.codebooks, window)

    def clip_codes(self, pcm: np.ndarray) -> np.ndarray:
        """The codes `[codebooks, T]` of a clip `[n]` at 24 kHz to be continued, for `read_prefix` here or on another machine."""
        window = self.lm.cfg.transformer.context
        return np.array(voice_files.clip_codes(self.mimi, pcm, self.codebooks, window, "that was sent"))

    def read_prefix(self, codes: np.ndarray) -> mx.array:
        """What `clip_codes` gave, as `get_prefix` gives it."""
        return voice_files.prefix_of(codes, self.codebooks, self.lm.cfg.card, self.lm.cfg.transformer.context)

    # Speaking ---------------------------------------------------------------------------------------------------

    def generator(
        self,
        states: Sequence[State],
        attributes: Sequence[ConditionAttributes],
        prefixes: Sequence[mx.array] | None = None,
        cfg_is_no_prefix: bool = True,
        cfg_is_no_text: bool = True,
        **options: Any,
    ) -> TokenGenerator:
        """The generation loop of a batch; `options` are those of `TokenGenerator`."""
        if prefixes is not None and len(prefixes) != len(states):
            raise InputError(f"{len(states)} utterances need as many prefixes, found {len(prefixes)}.")
        if len(attributes) not in (0, len(states)):
            raise InputError(f"{len(states)} utterances need as many condition attributes, found {len(attributes)}.")
        if self.cfg_coef != 1.0 and self.valid_cfg_conditionings:
            raise InputError(
                "this model has its guidance built in: set TTSModel.cfg_coef to 1 and pass the coefficient to make_condition_attributes."
            )
        text_temp = self.temp if self.text_temp is None else self.text_temp
        return TokenGenerator(
            self.lm,
            self.machine,
            states,
            self.delay_steps,
            text_sampler=Sampler(temp=text_temp, top_p=0, top_k=self.text_top_k),
            audio_sampler=Sampler(temp=self.temp, top_p=0, top_k=self.audio_top_k),
            conditions=self._conditions_of(list(attributes)),
            prefixes=prefixes,
            codebooks=self.codebooks,
            cfg_coef=self.cfg_coef,
            cfg_is_no_text=cfg_is_no_text,
            cfg_is_no_prefix=cfg_is_no_prefix,
            padding_bonus=self.padding_bonus,
            final_padding=self.final_padding,
            **options,
        )

    def _conditions_of(self, attributes: list[ConditionAttributes]) -> Conditions | None:
        if not attributes or self.lm.cfg.fuser is None:
            return None
        rows = attributes + dropout_all_conditions(attributes) if self.cfg_coef != 1.0 else attributes
        key = (len(rows), *map(id, attributes))
        if key not in self._conditions:
            while len(self._conditions) >= _CONDITIONS_KEPT:
                del self._conditions[next(iter(self._conditions))]
            # The attributes are kept as well, so that their ids stay theirs.
            self._conditions[key] = attributes, make_conditions(self.lm, rows)
        return self._conditions[key][1]

    def speech(
        self,
        attributes: Sequence[ConditionAttributes],
        prefixes: Sequence[mx.array] | None = None,
        *,
        padding_between: int = 1,
        seed: int | Sequence[int] | None = None,
        compile: bool = True,
        keep_log: bool = False,
        own_clocks: bool = False,
        kv_bits: int | None = None,
    ) -> Speech:
        """Utterances to be spoken, one per entry of `attributes`; their text is given to the result.

        They go on in lockstep or, with `own_clocks`, each by itself and others take their places (`join`). `keep_log`: keep what was
        sampled at every step in `generator.logged_text_tokens`. `kv_bits` stores keys and values packed.
        """
        states = [self.machine.new_state([]) for _ in attributes]
        readers = [self.reader(padding_between) for _ in attributes]
        generator = self.generator(
            states, attributes, prefixes, seed=seed, compile=compile, own_clocks=own_clocks, kv_bits=kv_bits
        )
        generator.keep_log = keep_log
        return Speech(generator, self.mimi, readers, compile)

    def reader(self, padding_between: int = 1) -> ScriptReader:
        """What takes the text of one utterance apart."""
        ids, rate = self.machine.token_ids, self.mimi.frame_rate
        return ScriptReader(self.tokenizer, ids, rate, self.multi_speaker, padding_between)

    def join(
        self,
        speech: Speech,
        row: int,
        attributes: ConditionAttributes,
        prefix: mx.array | None = None,
        *,
        padding_between: int = 1,
        seed: int | None = None,
        manner: Manner | None = None,
    ) -> None:
        """Begin an utterance in `row` of a speech with `own_clocks`, with nothing to say yet."""
        state, reader = self.machine.new_state([]), self.reader(padding_between)
        conditions = self._conditions_of([attributes])
        speech.join(row, reader, state, prefix, conditions=conditions, manner=manner, seed=seed)

    def generate(
        self,
        all_entries: Sequence[Sequence[Entry]],
        attributes: Sequence[ConditionAttributes],
        prefixes: Sequence[mx.array] | None = None,
        cfg_is_no_prefix: bool = True,
        cfg_is_no_text: bool = True,
        on_audio_hook: ArrayHook | None = None,
        on_text_hook: ArrayHook | None = None,
        on_frame: Callable[[mx.array], None] | None = None,
    ) -> TTSResult:
        """Generate a batch of whole texts. `on_frame` gets the codes `[B, codebooks]` of each frame as it is made.

        The hooks see `[B, 1]` text and `[B, codebooks, 1]` audio tokens and may change them in place.
        """
        states = [self.machine.new_state(entries) for entries in all_entries]
        generator = self.generator(
            states,
            attributes,
            prefixes,
            cfg_is_no_prefix,
            cfg_is_no_text,
            on_audio_hook=on_audio_hook,
            on_text_hook=on_text_hook,
        )
        generator.text_complete = generator.keep_log = True
        if isinstance(self.mimi, Mimi):
            # Scripts decode with the codec's own stream, frame by frame.
            self.mimi.reset_all()
        frames: list[mx.array] = []
        while not generator.done and generator.offset < self.max_gen_length:
            frame = generator.step()
            mx.async_eval(generator.state)
            if generator.offset - 1 - generator.max_delay < self.delay_steps:
                continue
            assert frame is not None
            frames.append(frame[:, 1:, None])
            mx.async_eval(frames[-1])
            if on_frame is not None:
                on_frame(frame[:, 1:])
        return TTSResult(
            frames,
            generator.logged_text_tokens,
            [s.end_step for s in states],
            [s.consumption_times for s in states],
            [s.transcript for s in states],
        )
