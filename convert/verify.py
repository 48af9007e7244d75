"""Source and result side by side on the same codes: the largest difference of their logits.

The result is opened as any source is, through its own recognition and plan, so that what was written is read back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np

from moshi_mlx.checkpoint import fill
from moshi_mlx.checkpoint.layouts import mimi as mimi_layouts
from moshi_mlx.config import LmConfig
from moshi_mlx.engine.forward import forward
from moshi_mlx.engine.step import Conditions, make_conditions
from moshi_mlx.errors import CheckpointError
from moshi_mlx.machine import memory
from moshi_mlx.models.lm_model import LmModel
from moshi_mlx.models.mimi_model import MimiModel
from moshi_mlx.modules.conditioner import ConditionAttributes

from .codec import Codec
from .language_model import LanguageModel
from .request import Request
from .source import Source, open_source

# Both models in float32, with room for activations: what any machine that makes checkpoints can spare.
SMALL_BYTES = 1_000_000_000
FRAMES = 24


@dataclass(frozen=True)
class Difference:
    """Largest absolute differences; `codes` is the number of codes of the codec that are not the same."""

    text: float
    audio: float | None
    codec: float | None = None
    codes: int | None = None

    def sentence(self) -> str:
        parts = [f"text logits {self.text:.3g}"]
        if self.audio is not None:
            parts.append(f"audio logits {self.audio:.3g}")
        if self.codec is not None:
            parts.append(f"decoded audio {self.codec:.3g}, {self.codes} codes")
        return f"source and result differ by at most: {', '.join(parts)}"


def is_small(model: LanguageModel) -> bool:
    return 2 * _float32_bytes(model) <= SMALL_BYTES


def refuse_if_too_large(model: LanguageModel) -> None:
    """One model is loaded after the other. Raises `CheckpointError` before it is tried where one alone is too much."""
    what = "--verify, which runs source and result in float32,"
    memory.refuse_if_too_large(_float32_bytes(model), what, "Leave it out")


def _float32_bytes(model: LanguageModel) -> int:
    return sum(4 * int(np.prod(shape)) for shape in model.parameters.values())


def seeded_codes(cfg: LmConfig, frames: int, seed: int) -> mx.array:
    """`[1, 1 + n_q, frames]` int32, uniform over the vocabularies."""
    rng = np.random.default_rng(seed)
    text = rng.integers(0, cfg.text_card, (1, 1, frames))
    audio = rng.integers(0, cfg.card, (1, cfg.n_q, frames))
    return mx.array(np.concatenate([text, audio], axis=1).astype(np.int32))


def neutral_conditions(lm: LmModel) -> Conditions | None:
    """Every condition absent, for models that have any."""
    return make_conditions(lm, [ConditionAttributes()]) if lm.cfg.fuser is not None else None


def logits(lm: LmModel, codes: mx.array) -> tuple[mx.array, mx.array | None]:
    """Text logits `[1, T, V]` and codebook logits `[1, dep_q, T, card]` of given codes, as the model computes them."""
    if not lm.cfg.n_q:
        # A text model has no initial token and no delays.
        text, audio = lm(codes[:, 0]), None
    else:
        out = forward(lm, codes, neutral_conditions(lm))
        text, audio = out.text_logits_delayed, out.audio_logits_delayed
    mx.eval([x for x in (text, audio) if x is not None])
    return text, audio


def compare(model: LanguageModel, codec: Codec | None, result: Path, exact: bool) -> Difference:
    """Run both; `codec` is given where it was rewritten. With `exact` (no number was to change) any difference is an error."""
    made = open_result(model, result, only_model=codec is None)
    assert made.model is not None
    frames = FRAMES + model.config.lm.max_delay
    codes = seeded_codes(model.config.lm, frames, seed=0)
    (text_a, audio_a), (text_b, audio_b) = logits(model.load(), codes), logits(made.model.load(), codes)
    text = _largest(text_a, text_b)
    audio = None if audio_a is None or audio_b is None else _largest(audio_a, audio_b)
    heard, wrong = None, None
    if codec is not None and made.codec is not None:
        heard, wrong = _compare_codecs(codec, made.codec)
    found = Difference(text, audio, heard, wrong)
    if exact and (text or audio or heard or wrong):
        raise CheckpointError(
            f"{found.sentence()}, although no number was to change. The conversion is faulty: report it."
        )
    if not np.isfinite(text) or (audio is not None and not np.isfinite(audio)):
        raise CheckpointError(f"{result} does not compute: its logits are not finite.")
    return found


def open_result(model: LanguageModel, folder: Path, only_model: bool) -> Source:
    """What was made of `model`, as any source is opened."""
    keeps_user = model.config.is_personaplex and model.config.lm.dep_q == model.config.lm.n_q
    made = open_source(Request(str(folder), keep_user_codebooks=keeps_user, only_model=only_model))
    if made.model is None:
        raise CheckpointError(f"{folder} holds no language model.")
    return made


def _largest(a: mx.array, b: mx.array) -> float:
    return mx.max(mx.abs(a.astype(mx.float32) - b.astype(mx.float32))).item() if a.size else 0.0


def _compare_codecs(source: Codec, made: Codec) -> tuple[float, int]:
    """Half a second of noise encoded by both, and the codes decoded by both."""
    a, b = load_codec(source), load_codec(made)
    rng = np.random.default_rng(0)
    pcm = mx.array(0.1 * rng.standard_normal((1, 1, 6 * a.frame_size)).astype(np.float32))
    codes = a.encode(pcm)
    wrong = int(mx.sum(codes != b.encode(pcm)).item())
    return _largest(a.decode(codes), b.decode(codes)), wrong


def load_codec(codec: Codec, levels: int | None = None) -> MimiModel:
    """A codec from its stored tensors, with its first `levels` codebooks (default: all)."""
    cfg = codec.cfg if levels is None else replace(codec.cfg, num_codebooks=max(levels, codec.cfg.n_semantic))
    mimi = MimiModel(cfg)
    parameters: Mapping = fill.parameter_shapes(mimi)
    layout = mimi_layouts.detect(codec.tensors)
    plan = mimi_layouts.sources(parameters, cfg, codec.tensors, layout, mimi.transposed_parameters())
    fill.fill(mimi, plan, codec.tensors, lambda name, stored: mx.float32)
    return mimi
