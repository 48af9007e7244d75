"""What the folder of a loaded model holds, and says about it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..checkpoint.loader import Checkpoint
from ..models.mimi_model import MimiModel
from ..session import conversation_file
from ..session.voices import Voice
from .codec import codec_plan
from .function import MLX_VERSION
from .plan import Plan
from .talk import TalkFunctions, prompts_of


def of_model(
    loaded: Checkpoint,
    command: Sequence[str] = (),
    *,
    kv_bits: int | None = None,
    conditions: Mapping[str, str] | None = None,
    capacities: Sequence[int] | None = None,
    voices: Sequence[str | Path | Voice] = (),
    text_prompts: Sequence[str] = (),
) -> Plan:
    """A model that talks, translates or transcribes. `command`: what the folder says that it was made by.

    `kv_bits` as for a `Session`; `conditions` by name; `capacities` are sizes of the rings beside the window's; `voices` and
    `text_prompts` (each voice in each role a start) are for PersonaPlex. Raises `InputError` for what the model cannot do.
    """
    prompts = prompts_of(loaded, voices, text_prompts)
    plan = TalkFunctions(loaded, kv_bits=kv_bits, conditions=conditions, capacities=capacities).plan(prompts)
    files = loaded.files
    model = {
        "type": files.config.kind,
        "source": files.source,
        "license": files.licence,
        "precision": loaded.precision,
        "dtype": str(loaded.lm.dtype).removeprefix("mlx.core."),
    }
    conversation = {"format": conversation_file.FORMAT, "model": loaded.fingerprint}
    return _described(plan, model, conversation, command)


def of_codec(mimi: MimiModel, source: str, licence: str | None, command: Sequence[str] = ()) -> Plan:
    """Mimi alone, all its codebooks."""
    model = {"type": "codec", "source": source, "license": licence, "precision": "float32", "dtype": "float32"}
    return _described(codec_plan(mimi), model, {}, command)


def _described(plan: Plan, model: dict[str, Any], conversation: dict[str, str], command: Sequence[str]) -> Plan:
    facts = {"model": model, **plan.facts, "conversation": conversation}
    return replace(plan, facts=facts, about=_about(model, command))


def _about(model: dict[str, Any], command: Sequence[str]) -> str:
    """The README of the folder: where it comes from and under which terms."""
    made = f"`{shlex.join(command)}`" if command else "moshi_mlx"
    return (
        f"# {model['source']}, as an exported frame\n\n"
        f"Made by {made} with MLX {MLX_VERSION}, for the {mx.default_device().type.name}.\n"
        "It runs with libmoshi (`native/` of moshi_mlx) and that version of MLX; another version needs it made anew.\n\n"
        f"Weights: {model['source']}. Licence: {model['license'] or 'see the model card'}. "
        "An app that carries them has to say so where their licence asks for attribution.\n"
    )
