"""Checks of text-to-speech goldens: scripts, the text machine, and whole runs of small models (see their README)."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from golden_cases import beside
from golden_lm import _record_inputs, close, equal, read
from sentencepiece import SentencePieceProcessor

from moshi_mlx.checkpoint import load_lm_file
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.models.lm import Lm
from moshi_mlx.text_to_speech.tts_model import Entry, StateMachine, TokenIds, TTSModel, script_to_entries

LOGITS_TOL = 1e-4


def tokenizer_of(case: Path) -> SentencePieceProcessor:
    """The tokenizer that the cases share."""
    return SentencePieceProcessor(str(beside(case, "tokenizer/*.model")))


def as_json(entries: list[Entry]) -> list[dict]:
    return [{"tokens": list(e.tokens), "text": e.text, "padding": e.padding} for e in entries]


def check_scripts(path: Path) -> None:
    tokenizer = tokenizer_of(path)
    for case in json.loads(path.read_text(encoding="utf-8")):
        entries = script_to_entries(
            tokenizer,
            TokenIds(tokenizer.vocab_size() + 1),
            case["frame_rate"],
            case["script"],
            case["multi_speaker"],
            case["padding_between"],
        )
        assert as_json(entries) == case["entries"], case["name"]


def check_traces(path: Path) -> None:
    """The machine on predictions that are given."""
    for case in json.loads(path.read_text(encoding="utf-8")):
        ids = TokenIds(case["card"])
        machine = StateMachine(ids, case["second_stream_ahead"], case["max_padding"], case["initial_padding"])
        state = machine.new_state([Entry(**e) for e in case["entries"]])
        trace = []
        for step, (prediction, *_) in enumerate(case["trace"]):
            output, consumed = machine.process(step, state, prediction)
            trace.append([prediction, output, int(consumed), state.remaining_padding, state.forced_padding])
        assert trace == case["trace"], case["name"]
        assert state.end_step == case["end_step"], case["name"]
        assert state.consumption_times == case["consumption_times"], case["name"]
        assert [list(t) for t in state.transcript] == case["transcript"], case["name"]


class _Codec:
    """What `TTSModel` asks of a codec when nothing is decoded."""

    frame_rate, sample_rate = 12.5, 24000


def load(folder: Path) -> tuple[Lm, dict]:
    raw = json.loads((folder / "config.json").read_text())
    lm = Lm(CheckpointConfig.from_dict(raw).lm)
    load_lm_file(lm, folder / "model.safetensors", dtype=mx.float32)
    return lm, raw


def check_runs(path: Path) -> None:
    """Whole greedy runs: every model input, both halves, every frame, every time."""
    lm, raw = load(path.parent)
    tokenizer = tokenizer_of(path)
    logits = read(path.with_name("logits.safetensors"))
    cases = json.loads(path.read_text(encoding="utf-8"))
    # The compiled step rearranges the weights, so it comes second.
    for compile in (False, True):
        for case in cases:
            check_run(lm, raw, tokenizer, case, logits, path, compile)


def check_run(lm: Lm, raw: dict, tokenizer, case: dict, logits: dict, path: Path, compile: bool) -> None:
    name = case["name"]
    tts = TTSModel(
        lm,
        _Codec(),
        tokenizer,
        temp=0.0,
        cfg_coef=case["cfg_coef"],
        final_padding=case["final_padding"],
        n_q=case["n_q"],
        padding_bonus=case["padding_bonus"],
        initial_padding=case["initial_padding"],
        max_padding=case["max_padding"],
        raw_config=raw,
    )
    assert tts.delay_steps == case["delay_steps"], name
    entries = tts.prepare_script(case["script"], case["padding_between"])
    assert as_json(entries) == case["entries"], name
    attributes = tts.make_condition_attributes(
        [beside(path, f"voices/{v}") for v in case.get("voices", [])], case.get("cfg_cond")
    )
    prefixes = [mx.array(case["prefix"], mx.int32)] if "prefix" in case else None
    state = tts.machine.new_state(entries)
    generator = tts.generator(
        [state],
        [attributes],
        prefixes,
        case.get("cfg_is_no_prefix", True),
        case.get("cfg_is_no_text", True),
        compile=compile,
    )
    generator.text_complete = generator.keep_log = True
    inputs, frames = None if compile else _record_inputs(lm), []
    try:
        for t in range(case["steps_run"]):
            frame = generator.step()
            if frame is not None:
                frames.append(np.array(frame)[0])
            if f"{name}.hidden.{t}" in logits:
                hidden = generator.output.hidden
                raw_logits = lm.text_linear(hidden)[:, 0]
                close(f"{name} step {t} hidden", hidden[:, 0], logits[f"{name}.hidden.{t}"], LOGITS_TOL)
                close(f"{name} step {t} logits", raw_logits, logits[f"{name}.text_logits.{t}"], LOGITS_TOL)
    finally:
        if inputs is not None:
            inputs.restore()
    if inputs is not None:
        seen = np.stack(inputs.seen)
        equal(f"{name} model inputs", seen[:, 0], case["model_inputs"])
        if "model_inputs_null" in case:
            equal(f"{name} null inputs", seen[:, 1], case["model_inputs_null"])
    equal(f"{name} text", generator.logged_text_tokens[0], case["logged_text_tokens"])
    equal(f"{name} frames", np.stack(frames), case["frames"])
    assert state.end_step == case["end_step"], name
    assert state.consumption_times == case["consumption_times"], name
    assert [list(t) for t in state.transcript] == case["transcript"], name
    # The reference stops before the delays have let the last frames out.
    if case["end_step"] is not None:
        assert generator.last_step == case["steps_run"] + lm.cfg.max_delay, name
