"""Checks of one language-model golden case: the whole-sequence forward and every step-by-step run (see its README)."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoint import load_lm_file
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.engine.forward import forward
from moshi_mlx.engine.row_state import one_row, put_row
from moshi_mlx.engine.step import Conditions, Guidance, Hooks, Step, make_conditions
from moshi_mlx.models.lm import Lm
from moshi_mlx.modules.conditioner import ConditionAttributes, TensorCondition, dropout_all_conditions
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.modules.transformer import capacity_of

DTYPE_NAMES = {"BF16": "bfloat16", "F32": "float32", "U32": "uint32"}
KEEP = -100
NO_FRAME = -3
TEXT_TOL = 1e-4
DEPTH_TOL = 2e-4
GREEDY = Sampler(temp=0)


def load(case: Path) -> Lm:
    config = CheckpointConfig.from_dict(json.loads((case / "config.json").read_text()))
    lm = Lm(config.lm)
    load_lm_file(lm, case / "model.safetensors", dtype=mx.float32)
    return lm


def read(path: Path) -> dict[str, np.ndarray]:
    return {k: np.array(v) for k, v in mx.load(str(path)).items()}


def close(name: str, ours, expected, tol: float) -> None:
    ours, expected = np.asarray(ours, np.float64), np.asarray(expected, np.float64)
    assert ours.shape == expected.shape, f"{name}: shape {ours.shape}, expected {expected.shape}"
    assert (np.isnan(ours) == np.isnan(expected)).all(), f"{name}: other NaN pattern"
    worst = np.nanmax(np.abs(ours - expected), initial=0)
    assert worst <= tol, f"{name}: off by {worst:.2e}, tolerance {tol:.0e}"


def equal(name: str, ours, expected) -> None:
    ours, expected = np.asarray(ours), np.asarray(expected)
    assert ours.shape == expected.shape, f"{name}: shape {ours.shape}, expected {expected.shape}"
    wrong = np.argwhere(ours != expected)
    assert not len(wrong), f"{name}: {len(wrong)} of {ours.size} differ, first at {wrong[0].tolist()}"


def attributes(spec: list[dict] | None, data: dict[str, np.ndarray], null_negative: bool) -> list[ConditionAttributes]:
    rows = []
    for row, entry in enumerate(spec or []):
        tensors = {
            name: TensorCondition(
                mx.array(data[f"cond.in.{row}.{name}.tensor"])[None], mx.array(data[f"cond.in.{row}.{name}.mask"])[None]
            )
            for name in entry.get("tensor", {})
        }
        rows.append(ConditionAttributes(text=dict(entry.get("text", {})), tensor=tensors))
    return rows + dropout_all_conditions(rows) if null_negative else rows


def conditions_of(
    lm: Lm, spec: list[dict] | None, data: dict[str, np.ndarray], null_negative: bool
) -> Conditions | None:
    if lm.cfg.fuser is None:
        return None
    rows = attributes(spec, data, null_negative)
    if lm.condition_provider is not None:
        for name, value in lm.condition_provider.provide(rows).items():
            close(f"cond.out.{name}", value, data[f"cond.out.{name}"], TEXT_TOL)
    result = make_conditions(lm, rows)
    if "cond.sum" in data:
        close("cond.sum", result.total, data["cond.sum"], TEXT_TOL)
    return result


def check_full(case: Path, lm: Lm) -> None:
    """The teacher-forced forward over a whole sequence."""
    path = case / "full.safetensors"
    if not path.exists():
        return
    data = read(path)
    conditions = None
    if lm.cfg.fuser is not None:
        total = mx.array(data["cond.sum"]) if "cond.sum" in data else None
        cross = lm.transformer.cross_keys_values(mx.array(data["cond.cross"])) if "cond.cross" in data else None
        conditions = Conditions(total, cross)
    out = forward(lm, mx.array(data["codes"]), conditions)
    close("full hidden", out.hidden, data["expect.transformer_out"], TEXT_TOL)
    close("full text logits", out.text_logits_delayed, data["expect.text_logits_raw"], TEXT_TOL)
    if lm.dep_q:
        close("full text", out.text_logits, data["expect.text_logits"], TEXT_TOL)
        equal("full text mask", np.array(out.text_mask), data["expect.text_mask"].astype(bool))
        close("full depth logits", out.audio_logits_delayed, data["expect.depth_logits_raw"], DEPTH_TOL)
        close("full audio", out.audio_logits, data["expect.audio_logits"], DEPTH_TOL)
        equal("full audio mask", np.array(out.audio_mask), data["expect.audio_mask"].astype(bool))


class Recorder:
    """Hooks of a run: record what was sampled and impose what the golden imposes."""

    def __init__(self, data: dict[str, np.ndarray]):
        self.data, self.t = data, 0
        self.text_sampled: list = []
        self.audio_sampled: list = []

    def text_logits(self, logits: mx.array) -> mx.array:
        return logits + mx.array(self.data["hook.text_logits_bias"])

    def text(self, tokens: mx.array) -> mx.array:
        self.text_sampled.append(np.array(tokens))
        return self._force(tokens, "hook.text_force")

    def audio(self, tokens: mx.array) -> mx.array:
        self.audio_sampled.append(np.array(tokens))
        return self._force(tokens, "hook.audio_force")

    def _force(self, tokens: mx.array, name: str) -> mx.array:
        if name not in self.data:
            return tokens
        force = mx.array(self.data[name][self.t])
        return mx.where(force == KEEP, tokens, force)

    def hooks(self) -> Hooks:
        biased = "hook.text_logits_bias" in self.data
        return Hooks(self.text_logits if biased else None, self.text, self.audio)


def check_run(lm: Lm, run: Path) -> None:
    """A step-by-step run: plain, compiled in parts with hooks between them, and, where nothing is imposed, compiled whole."""
    options = json.loads(run.read_text())
    data = read(run.with_suffix(".safetensors"))
    conditions = conditions_of(lm, options["conditions"], data, options["null_negative"])
    for mode in ("plain", "parts", "whole"):
        imposed = any(name.startswith("hook.") for name in data)
        if mode != "whole" or not imposed:
            check_mode(lm, options, data, conditions, mode)


def check_mode(lm: Lm, options: dict, data: dict[str, np.ndarray], conditions: Conditions | None, mode: str) -> None:
    batch, out_of_sync = options["batch"], options["support_out_of_sync"]
    masked = options["cfg_is_masked_until"]
    guidance = Guidance(options["cfg_coef"], None if masked is None else tuple(masked), options["cfg_is_no_text"])
    step = Step(lm, GREEDY, GREEDY, guidance, compile=mode != "plain")
    state = step.init_state([0] * batch, lm.transformer.capacity() or 4 * options["steps"], lockstep=not out_of_sync)
    recorder = Recorder(data)
    inputs = _record_inputs(lm) if mode == "plain" else None
    heads, frames, returned = [], [], []
    try:
        for t in range(options["steps"]):
            recorder.t = t
            execute = None
            if "exec_mask" in data:
                execute = mx.array(data["exec_mask"][t].astype(bool))
                for row in np.flatnonzero(data["reset_mask"][t]).tolist():
                    state = put_row(step, state, one_row(step, capacity_of(state["trunk"]), seed=0), row)
            replace = None
            if data.get("hook.replace_on", np.zeros(t + 1))[t]:
                replace = mx.array(data["hook.replace_tokens"][t])
            given = mx.array(data["input_tokens"][t])[:, : step.clock.given]
            hooks = None if mode == "whole" else recorder.hooks()
            state, out = step.run(state, given, conditions, execute, replace, hooks)
            rows = np.ones(batch, bool) if execute is None else np.array(execute)
            _check_step(f"{mode} step {t}", t, data, out, recorder, rows, guidance.active)
            heads.append([np.array(h)[:, 0] for h in lm.heads(out.hidden)])
            frames.append(np.array(out.frame))
            returned.append(bool(out_of_sync or np.array(out.valid).any()))
    finally:
        if inputs is not None:
            inputs.restore()
    equal("returned", np.array(returned), data["expect.returned"].astype(bool))
    shown = [f if r else np.full_like(f, NO_FRAME) for f, r in zip(frames, returned, strict=True)]
    equal("frames", np.stack(shown), data["expect.frames"])
    if inputs is not None:
        equal("model input", np.stack(inputs.seen), data["expect.model_input"])
    if "expect.extra_heads" in data and lm.cfg.extra_heads_num_heads:
        close("extra heads", np.stack([np.stack(h, axis=1) for h in heads]), data["expect.extra_heads"], TEXT_TOL)


def _check_step(name: str, t: int, data: dict, out, recorder: Recorder, rows: np.ndarray, guided: bool) -> None:
    doubled = np.concatenate([rows, rows]) if guided else rows
    close(f"{name} hidden", np.array(out.hidden)[doubled, 0], data["expect.transformer_out"][t][doubled], TEXT_TOL)
    tol = DEPTH_TOL if guided else TEXT_TOL
    close(f"{name} text logits", np.array(out.text_logits)[rows], data["expect.text_logits"][t][rows], tol)
    equal(f"{name} text", np.array(out.text)[rows], data["expect.text_token"][t][rows])
    if len(recorder.text_sampled) > t:
        equal(f"{name} text sampled", recorder.text_sampled[t][rows], data["expect.text_sampled"][t][rows])
    if out.audio is None:
        return
    equal(f"{name} audio", np.array(out.audio)[rows], data["expect.audio_tokens"][t][rows])
    if len(recorder.audio_sampled) > t:
        equal(f"{name} audio sampled", recorder.audio_sampled[t][rows], data["expect.audio_sampled"][t][rows])


class _record_inputs:
    """Sees the tokens given to the trunk."""

    def __init__(self, lm: Lm):
        self.lm, self.seen = lm, []
        original = lm.embed

        def embed(tokens: mx.array) -> mx.array:
            self.seen.append(np.array(tokens))
            return original(tokens)

        object.__setattr__(lm, "embed", embed)

    def restore(self) -> None:
        object.__delattr__(self.lm, "embed")


def check_precisions(folder: Path) -> None:
    """One model in the PyTorch and MLX layouts and packed: logits with imposed tokens, against de-quantised float32."""
    inputs = {k: mx.array(v) for k, v in read(folder / "inputs.safetensors").items()}
    config = CheckpointConfig.from_dict(json.loads((folder / "config.json").read_text()))
    tensors = json.loads((folder / "tensors.json").read_text())
    for name, expected in (("pytorch.model", "bf16"), ("model", "bf16"), ("model.q8", "q8"), ("model.q4", "q4")):
        path = folder / f"{name}.safetensors"
        lm = Lm(config.lm)
        load_lm_file(lm, path, dtype=mx.float32)
        stored = {n: [list(t.shape), DTYPE_NAMES[t.dtype]] for n, t in WeightsFile(path).items()}
        if path.name in tensors:
            assert stored == tensors[path.name], f"{path.name}: other names, shapes or types"
        want = read(folder / f"expect_{expected}.safetensors")
        tol = TEXT_TOL if expected == "bf16" else 1e-3
        for prepared in (False, True):
            if prepared:
                lm.prepare()
            text, audio = imposed_logits(lm, inputs)
            close(f"{name} text", text, want["expect.text_logits"], tol)
            close(f"{name} audio", audio, want["expect.audio_logits"], tol)


def imposed_logits(lm: Lm, inputs: dict[str, mx.array]) -> tuple[np.ndarray, np.ndarray]:
    """Text `[T, B, V]` and depth `[T, B, Dq, card]` logits when trunk and depth stack are fed given tokens."""
    state = lm.transformer.init_state(1, lm.transformer.capacity(), lm.dtype)
    text, audio = [], []
    for t in range(inputs["model_input"].shape[0]):
        z, state = lm.trunk(lm.embed(inputs["model_input"][t]), state)
        text.append(np.array(lm.text_linear(z)[:, 0].astype(mx.float32)))
        frame: list[mx.array] = []
        forced = inputs["audio_tokens"][t]

        def choose(k: int, logits: mx.array, frame=frame, forced=forced) -> mx.array:
            frame.append(logits)
            return forced[:, k]

        lm.depformer(z, inputs["text_token"][t], choose)
        audio.append(np.array(mx.stack(frame, axis=1).astype(mx.float32)))
    return np.stack(text), np.stack(audio)


def check_sampling(path: Path) -> None:
    """The exact distributions samplers draw from, and draws that follow them."""
    data = read(path)
    logits = mx.array(data["logits"])
    equal("greedy", GREEDY.choose(logits, None), data["argmax"])
    for key, expected in data.items():
        if not key.startswith("probs."):
            continue
        temp, kind = key.removeprefix("probs.temp").rsplit(".top", 1)
        value = float(kind[1:])
        sampler = Sampler(
            temp=float(temp), top_p=value if kind[0] == "p" else 0, top_k=int(value) if kind[0] == "k" else None
        )
        close(key, mx.softmax(sampler.kept(logits), axis=-1), expected, 1e-5)
