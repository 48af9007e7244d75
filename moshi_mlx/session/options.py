"""What a session may be made with: everything that cannot be is one sentence, said before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..arguments import kind, number, one_of, seeds, shown, whole
from ..checkpoint.loader import Checkpoint
from ..config.reader import MOST
from ..errors import InputError
from ..modules.conditioner import ConditionAttributes
from ..modules.repetition import RepetitionPenalty
from ..modules.sampling import Sampler
from .voices import Voice


def check_options(
    *,
    batch: Any = 1,
    seed: Any = 0,
    text_sampler: Any = None,
    audio_sampler: Any = None,
    cfg_coef: Any = 1.0,
    attributes: Any = None,
    voice: Any = None,
    text_prompt: Any = None,
    compile: Any = True,
    kv_bits: Any = None,
    repetition_penalty: Any = None,
) -> None:
    """The options of a `Session`, as far as they can be judged without its model."""
    batch = whole("batch", batch, 1, MOST)
    seeds(seed, batch)
    for name, sampler in (("text_sampler", text_sampler), ("audio_sampler", audio_sampler)):
        if sampler is not None:
            kind(name, sampler, Sampler, "a Sampler")
    guided = number("cfg_coef", cfg_coef) != 1.0
    kind("compile", compile, bool, "True or False")
    one_of("kv_bits", kv_bits, (4, 8, None))
    if repetition_penalty is not None:
        kind("repetition_penalty", repetition_penalty, RepetitionPenalty, "a RepetitionPenalty")
    check_attributes(attributes, 2 * batch if guided else batch)
    if voice is not None:
        kind("voice", voice, (str, Path, Voice), "a name, a file or a Voice")
    if text_prompt is not None:
        kind("text_prompt", text_prompt, str, "a text")


def check_loaded(loaded: Any) -> None:
    """Whether one can talk to `loaded`."""
    kind("loaded", loaded, Checkpoint, "what moshi_mlx.checkpoint.load returns (Session.load takes names and folders)")
    if loaded.config.tts is not None:
        raise InputError(
            f"{loaded.files.source} is a text-to-speech model, which nobody can talk to; python -m moshi_mlx.run_tts speaks with it."
        )


def default_samplers(loaded: Checkpoint) -> tuple[Sampler, Sampler]:
    """How text and audio are sampled where nobody says: as the checkpoint does, by top-k alone."""
    defaults = loaded.config.generation
    text = Sampler(temp=defaults.temp_text, top_p=0, top_k=defaults.top_k_text)
    return text, Sampler(temp=defaults.temp, top_p=0, top_k=defaults.top_k)


def check_attributes(attributes: Any, rows: int) -> None:
    """Conditions of `rows` rows, if any are given."""
    if attributes is None:
        return
    if not isinstance(attributes, Sequence) or not all(isinstance(a, ConditionAttributes) for a in attributes):
        raise InputError(f"attributes should be a list of ConditionAttributes, found {shown(attributes)}.")
    if attributes and len(attributes) != rows:
        raise InputError(
            f"attributes should have {rows} entries, one for each conversation and, with cfg_coef, then the null ones; found "
            f"{len(attributes)}."
        )
