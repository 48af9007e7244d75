"""Checks of an adapter golden: base and adapter give what the fused file gives (see the README of the goldens)."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from golden_lm import TEXT_TOL, close, equal, read
from mlx.utils import tree_flatten

from moshi_mlx.checkpoint import load_lm_file
from moshi_mlx.checkpoint.lora import Adapter
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.engine.forward import forward
from moshi_mlx.models.lm import Lm

# Merged weights are of order one: a unit or two in the last place of float32.
WEIGHT_TOL = 5e-7
# Of the largest logit, which is 50 here: moving every weight by half a unit in its last place moves these logits by 4e-6 of it.
AUDIO_TOL = 1e-5


def load(case: Path, weights: str, adapted: bool = False) -> Lm:
    config = CheckpointConfig.from_dict(json.loads((case / "config.json").read_text()))
    adapter = Adapter(case / "lora.safetensors", config.lm, config.lora_scaling) if adapted else None
    lm = Lm(config.lm)
    load_lm_file(lm, case / f"{weights}.safetensors", dtype=mx.float32, adapter=adapter)
    return lm


def logits(lm: Lm, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Text `[T, V]` and audio `[K, T, card]`, zero where nothing is predicted."""
    out = forward(lm, mx.array(codes)[None])
    assert out.audio_logits is not None
    return np.array(out.text_logits[0, 0]), np.nan_to_num(np.array(out.audio_logits[0]))


def check(case: Path) -> None:
    data = read(case / "io.safetensors")
    adapted, fused = load(case, "base", adapted=True), load(case, "fused")
    for (name, ours), (_, expected) in zip(
        tree_flatten(adapted.parameters()), tree_flatten(fused.parameters()), strict=True
    ):
        close(name, ours, expected, WEIGHT_TOL)
    for lm, name in ((load(case, "base"), "base"), (adapted, "adapted"), (fused, "adapted")):
        text, audio = logits(lm, data["codes"])
        close(f"{name} text", text, data[f"{name}.text_logits"], TEXT_TOL)
        expected = data[f"{name}.audio_logits"]
        close(f"{name} audio", audio, expected, AUDIO_TOL * np.abs(expected).max())
        equal(f"{name} most probable codes", audio.argmax(-1), expected.argmax(-1))
