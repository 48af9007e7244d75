"""What is kept of a request beside its sound: the audio codes, and a record of how it came about."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from ..checkpoint.weights_writer import save_weights
from ..output import write_text
from .requests import Request
from .speech import Speech

if TYPE_CHECKING:
    from .tts_model import TTSModel


def settings(args: argparse.Namespace, tts: TTSModel) -> dict:
    """How requests were spoken, under the names of the published command."""
    return {
        "hf_repo": args.hf_repo or args.model,
        "voice_repo": args.voice_repo,
        "model_id": tts.model_id,
        "cfg_coef": args.cfg_coef,
        "temp": tts.temp,
        "max_padding": tts.machine.max_padding,
        "initial_padding": tts.machine.initial_padding,
        "final_padding": tts.final_padding,
        "padding_between": args.padding_between,
        "padding_bonus": tts.padding_bonus,
        "seed": args.seed,
    }


def write(
    folder: Path, request: Request, speech: Speech, row: int, codes: Sequence[np.ndarray], settings: dict
) -> None:
    """`ID.safetensors` with `frames [codebooks, T]` int32 (those of the sound), and `ID.json`."""
    generator = speech.generator
    state = generator.states[row]
    frames = np.stack(codes, axis=1) if codes else np.zeros((generator.codebooks, 0), np.int32)
    save_weights(folder / f"{request.id}.safetensors", {"frames": mx.array(frames)})
    words = speech.words(row, until=frames.shape[1] / speech.mimi.frame_rate)
    record = {
        **settings,
        "turns": request.turns,
        "voices": request.voices,
        "words": [{"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in words],
        "transcript": state.transcript,
        "consumption_times": state.consumption_times,
        "logged_text_tokens": generator.logged_text_tokens[row],
        "end_step": state.end_step,
        "start_step": generator.prefix_lengths[row],
    }
    write_text(folder / f"{request.id}.json", json.dumps(record, ensure_ascii=False) + "\n")
