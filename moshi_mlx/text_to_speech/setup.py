"""From the arguments of a command to a model that speaks, and what can be refused before its weights are read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..checkpoint.files import Files, require_tokenizer
from ..checkpoint.loader import Checkpoint
from ..config.parts import LmConfig, LutConditionerConfig
from ..errors import InputError
from ..modules.conditioner import ConditionAttributes
from . import voices as voice_files
from .speech import Speech
from .tts_model import TTSModel

# Voices of one utterance, the main speaker's first.
Voices = Sequence[str]


def configure(args: argparse.Namespace, loaded: Checkpoint) -> TTSModel:
    """A loaded checkpoint as the model that speaks, with the sampling and the pauses that were asked for."""
    temp = 0.0 if args.greedy else _first(args.temp, TTSModel.default_temp)
    tts = TTSModel.from_checkpoint(
        loaded,
        n_q=_first(args.nq, loaded.lm.dep_q),
        temp=temp,
        final_padding=args.final_padding,
        padding_bonus=args.padding_bonus,
        initial_padding=args.initial_padding,
        max_padding=args.max_padding,
        voice_repo=args.voice_repo,
    )
    tts.text_temp = temp if args.greedy or args.text_temp is None else args.text_temp
    tts.text_top_k = _first(args.text_top_k, tts.text_top_k)
    tts.audio_top_k = _first(args.top_k, tts.audio_top_k)
    if not tts.valid_cfg_conditionings:
        tts.cfg_coef = args.cfg_coef
    return tts


def _first(value: Any, default: Any) -> Any:
    return default if value is None else value


def check(args: argparse.Namespace, files: Files, voices: Sequence[list[str]], say: Callable[[str], None]) -> None:
    """Refuse options and voices that do not fit this one. `say` is told what a download needs to be said of.

    Sets `args.voice_repo` where nobody has named one, and adds the default voice to those of `voices` that are empty.
    """
    config = files.config
    assert config.tts is not None
    require_tokenizer(files)
    takes_embeddings = voice_files.TENSOR in config.lm.conditioners
    _check_codebooks(args.nq, config.lm, takes_embeddings)
    if args.dialogue and not takes_embeddings:
        raise InputError("--dialogue needs a model for several speakers; this one continues a single voice.")
    guidance = config.lm.conditioners.get("cfg")
    if isinstance(guidance, LutConditionerConfig) and guidance.possible_values is not None:
        known = sorted(float(v) for v in guidance.possible_values)
        if args.cfg_coef not in known:
            raise InputError(f"--cfg-coef: this model knows {', '.join(map(str, known))}; found {args.cfg_coef}.")
    suffix = voice_files.suffix_for(config)
    args.voice_repo = args.voice_repo or voice_files.repo_of(files)
    for names in voices:
        if not names:
            names.append(voice_files.default_voice(args.voice_repo, suffix))
        if not takes_embeddings and len(names) != 1:
            raise InputError(
                f"this model speaks with exactly one voice, that of a recording it continues; {len(names)} were given."
            )
        if len(names) > config.tts.max_speakers:
            raise InputError(f"this model takes up to {config.tts.max_speakers} voices, {len(names)} were given.")
        for name in names:
            voice_files.find_voice(name, args.voice_repo, suffix, say)


def _check_codebooks(wanted: int | None, lm: LmConfig, may_be_fewer: bool) -> None:
    if wanted is None or wanted == lm.dep_q:
        return
    if wanted > lm.dep_q:
        raise InputError(f"--nq: this model has {lm.dep_q} codebooks, {wanted} were asked for.")
    if not may_be_fewer:
        raise InputError(f"--nq: this model speaks with all of its {lm.dep_q} codebooks only, {wanted} were asked for.")


def start(
    args: argparse.Namespace, tts: TTSModel, voices: Sequence[Voices], keep_log: bool = False, own_clocks: bool = False
) -> Speech:
    """One utterance for each of `voices`, with nothing to say yet."""
    sides = [side(args, tts, names) for names in voices]
    return tts.speech(
        [attributes for attributes, _ in sides],
        None if tts.multi_speaker else [prefix for _, prefix in sides if prefix is not None],
        padding_between=args.padding_between,
        seed=[args.seed] * len(sides),
        compile=args.compile,
        keep_log=keep_log,
        own_clocks=own_clocks,
        kv_bits=args.kv_bits,
    )


def side(args: argparse.Namespace, tts: TTSModel, names: Voices) -> tuple[ConditionAttributes, mx.array | None]:
    """How the model is told whose voice to speak with: conditions, and a clip where it continues one."""
    paths = [tts.get_voice_path(name) for name in names]
    if not tts.multi_speaker:
        return tts.make_condition_attributes(), tts.get_prefix(paths[0])
    return tts.make_condition_attributes(paths, args.cfg_coef if tts.valid_cfg_conditionings else None), None


def join(args: argparse.Namespace, tts: TTSModel, speech: Speech, row: int, names: Voices) -> None:
    """Begin an utterance with the voices `names` in `row` of a speech with `own_clocks`."""
    attributes, prefix = side(args, tts, names)
    # The same seed for each: what a request sounds like does not depend on those beside it.
    tts.join(speech, row, attributes, prefix, padding_between=args.padding_between, seed=args.seed)
