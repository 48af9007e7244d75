"""Checks of a PersonaPlex golden: what every prompting step gave and what the conversation after it said (see the README)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from golden_cases import beside
from golden_lm import GREEDY, _record_inputs, equal
from sentencepiece import SentencePieceProcessor

from moshi_mlx.checkpoint import load_lm_file
from moshi_mlx.config.description import CheckpointConfig, as_personaplex
from moshi_mlx.engine import prefill
from moshi_mlx.engine.prefill import Forced
from moshi_mlx.engine.step import Step
from moshi_mlx.models.lm import Lm
from moshi_mlx.session import personaplex
from moshi_mlx.session.voices import Voice, load_voice

OWN = 9


def load(case: Path, whole: bool) -> Lm:
    """The model with all its depth steps, or as it is used: without those that predict the user."""
    config = CheckpointConfig.from_dict(json.loads((case / "config.json").read_text()))
    assert config.is_personaplex
    used = as_personaplex(config.lm)
    lm = Lm(replace(used, depformer=config.lm.depformer) if whole else used)
    load_lm_file(lm, case / "model.safetensors", dtype=mx.float32)
    return lm


def tokenizer_of(case: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(str(beside(case, "tokenizer/*.model")))


def prompts(case: Path, run: dict, lm: Lm) -> Iterator[tuple[str, Forced]]:
    """The prompt of each recorded run."""
    text = personaplex.text_tokens(tokenizer_of(case), run["text_prompt"])
    clip = Voice("clip", codes=np.array(run["voice_frames"], np.int32).T)
    [voice] = case.glob("*voice*.safetensors")
    stored = load_voice(voice)
    yield "from_audio_tokens", personaplex.make_prompt(lm.cfg, clip, text)
    yield "from_saved_embeddings", personaplex.make_prompt(lm.cfg, stored, text)
    yield "no_voice_no_text", personaplex.make_prompt(lm.cfg, None, [])


def check(case: Path) -> None:
    run = json.loads((case / "run.json").read_text())
    equal("silence", personaplex.SILENCE, run["silence_tokens"])
    equal("sine", personaplex.SINE, run["sine_tokens"])
    assert run["silence_frames"] == personaplex.SILENCE_FRAMES
    for tag in run["system_tags"]:
        assert personaplex.with_tags(tag["in"]) == tag["out"]
        assert personaplex.text_tokens(tokenizer_of(case), tag["in"]) == tag["tokens"]
    for whole in (False, True):
        lm = load(case, whole)
        for name, forced in prompts(case, run, lm):
            check_run(lm, forced, run[name], run["user_frames"], name)


def check_run(lm: Lm, forced: Forced, recorded: dict, user: list[list[int]], name: str) -> None:
    """Call c of the reference reads what our step at position c - 1 reads: its frame comes out one call later."""
    conversation = [row for row in recorded["rows"] if row["phase"] == "conversation"]
    length = conversation[0]["offset"]
    assert forced.length == length, name
    for row in recorded["rows"]:
        position = row["offset"] - 1
        if forced.embedded <= position < length:
            equal(f"{name} prompt at {position}", forced.tokens[:, position], row["model_input"])

    step = Step(lm, GREEDY, GREEDY, generated=OWN - 1, compile=False)
    state = prefill.run(step, forced, [0])
    inputs, frames = _record_inputs(lm), []
    try:
        for codes in user:
            state, out = step.run(state, mx.array([codes]))
            frames.append(np.array(out.frame[0]))
    finally:
        inputs.restore()
    expected = np.array(recorded["conversation_outputs"])[:, :OWN]
    delays = lm.cfg.delays
    equal(
        f"{name} last frame of the prompt", [forced.tokens[c, length - 1 + delays[c]] for c in range(OWN)], expected[0]
    )
    equal(f"{name} frames", np.array(frames)[:-1], expected[1:])
    seen = np.concatenate(inputs.seen)[:-1]
    equal(f"{name} model inputs", seen, [row["model_input"] for row in conversation[1:]])
