"""Checks of a Hibiki golden: whole translations of small models, to the end of their text (see the README of the goldens)."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
from golden_lm import GREEDY, TEXT_TOL, _record_inputs, close, equal, read

from moshi_mlx.checkpoint import load_lm_file, read_eos_as_pad
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.engine.step import Guidance, Step, make_conditions
from moshi_mlx.models.lm import Lm
from moshi_mlx.session import default_attributes
from moshi_mlx.session.hibiki import Ending


def load(case: Path) -> Lm:
    config = CheckpointConfig.from_dict(json.loads((case / "config.json").read_text()))
    assert config.model_type == "hibiki"
    lm = Lm(config.lm)
    load_lm_file(lm, case / "model.safetensors", dtype=mx.float32)
    read_eos_as_pad(lm)
    return lm


def check(case: Path) -> None:
    recorded, logits = json.loads((case / "runs.json").read_text()), read(case / "logits.safetensors")
    for run in recorded["runs"]:
        lm = load(case)
        check_run(lm, recorded, run, logits[f"cfg{run['cfg_coef']}.text_logits"])


def check_run(lm: Lm, recorded: dict, run: dict, logits: np.ndarray) -> None:
    """The reference feeds frame 0 twice: our first step reads what its first call does, the second has frame 0."""
    coef, delay = run["cfg_coef"], lm.cfg.max_delay
    step = Step(lm, GREEDY, GREEDY, Guidance(coef), compile=False)
    rows = default_attributes(SimpleNamespace(lm=lm), 1, coef)
    conditions = make_conditions(lm, rows) if rows else None
    silence = recorded["silence_frame"]
    tail = sum(kind == "silence" for kind in run["fed"])
    ending = Ending(tail)
    state, name = step.init_state([0], lm.transformer.capacity()), f"cfg {coef}"
    inputs, frames, stop, raw = _record_inputs(lm), [], None, []

    def fed():
        yield [lm.cfg.card] * len(silence)
        yield from recorded["input_frames"]
        for _, marked in ending.frames(1):
            yield [lm.cfg.card] * len(silence) if marked else silence

    try:
        for call, codes in enumerate(fed()):
            state, out = step.run(state, mx.array([codes]), conditions)
            raw.append(np.array(lm.text_linear(out.hidden)[0, 0]))
            if call < delay:
                continue
            frames.append(np.array(out.frame[0]))
            ended, ending.done = ending.see(int(frames[-1][0])), False
            if ended and stop is None:
                stop = len(frames) - 1
    finally:
        inputs.restore()
    equal(f"{name} model inputs", np.concatenate([x[:1] for x in inputs.seen]), run["model_inputs"])
    equal(f"{name} outputs", np.array(frames), run["outputs"])
    assert stop == run["stop_output"], f"{name}: stops at {stop}, expected {run['stop_output']}"
    close(f"{name} text logits", np.array(raw[: len(logits)]), logits, TEXT_TOL)
