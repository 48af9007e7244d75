"""Checks of a Helium golden: the prompt's logits and the greedy continuation, in every implementation there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from golden_lm import close, equal, read
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from moshi_mlx.checkpoint import load_lm_file
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.config.presets import HELIUM_1_PREVIEW_2B
from moshi_mlx.helium import text_model as helium
from moshi_mlx.models.lm import Lm

LOGITS_TOL = 1e-4
KYUTAI = "kyutai_mlx_layout.safetensors"


def text_model(model, make_cache, window: int) -> helium.TextModel:
    """A model alone, for tokens that are given."""
    return helium.TextModel(model, "golden", window, 1, frozenset(), lambda text: [], lambda: None, make_cache)


def kyutai_config(case: Path) -> dict:
    """The same shape in Kyutai's words."""
    c = json.loads((case / "config.json").read_text())
    assert c["intermediate_size"] == int(int(4.125 * c["hidden_size"]) * 2 / 3)
    return {
        **HELIUM_1_PREVIEW_2B,
        "dim": c["hidden_size"], "num_heads": c["num_attention_heads"], "num_layers": c["num_hidden_layers"],
        "max_period": helium.positions(c).get("rope_theta", c.get("rope_theta")), "text_card": c["vocab_size"], "text_in_vocab_size": c["vocab_size"],
        "context": c["max_position_embeddings"],
    }  # fmt: skip


def models(case: Path):
    """mlx-lm on the file of transformers, and ours on Kyutai's layout of the same weights where the case has it."""
    described = json.loads((case / "config.json").read_text())
    model, config = load_model(case, model_config=helium.positions(described))
    yield "mlx-lm", text_model(model, lambda: make_prompt_cache(model), config["max_position_embeddings"])
    if (case / KYUTAI).exists():
        lm = Lm(CheckpointConfig.from_dict(kyutai_config(case)).lm)
        load_lm_file(lm, case / KYUTAI, dtype=mx.float32)
        yield "ours", replace(helium.from_lm(lm, "golden", None), eos=frozenset())
        yield "whole sequence", text_model(_Whole(lm), None, 0)


class _Whole:
    """`Lm` called on all tokens at once, as scripts do."""

    def __init__(self, lm: Lm):
        self.lm = lm

    def __call__(self, tokens: mx.array, cache=None) -> mx.array:
        return self.lm(tokens)


def check(case: Path) -> None:
    run, expected = json.loads((case / "run.json").read_text()), read(case / "logits.safetensors")["logits"]
    prompt, continuation = run["prompt"], run["greedy_continuation"]
    for name, text in models(case):
        cache = None if text.cache is None else text.cache()
        close(f"{name} logits", np.array(text.model(mx.array([prompt]), cache=cache)[0]), expected, LOGITS_TOL)
        if text.cache is not None:
            equal(f"{name} text", list(helium.generate_tokens(text, prompt, len(continuation))), continuation)
