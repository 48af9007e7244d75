"""Codes that two models are compared on: from a file, from the source's answer to a recording, or drawn with a seed."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
from moshi_mlx.convert.source import Source
from moshi_mlx.convert.verify import load_codec, seeded_codes

from moshi_mlx.audio.files import AudioReader
from moshi_mlx.checkpoint import Checkpoint, default_dtype
from moshi_mlx.checkpoint.files import Files
from moshi_mlx.checkpoint.weights_file import WeightsFile
from moshi_mlx.commands.telling import say
from moshi_mlx.config import LmConfig
from moshi_mlx.errors import InputError
from moshi_mlx.machine import memory
from moshi_mlx.session import Session

SEED = 299792458


def held_out(source: Source, codes: str | None, audio: str | None, frames: int) -> tuple[mx.array, str]:
    """Codes `[1, 1 + n_q, T]` and what they are, in words."""
    assert source.model is not None
    cfg = source.model.config.lm
    if codes is not None:
        found = read_codes(Path(codes), cfg)
        return found, f"{found.shape[-1]} frames of {codes}"
    if audio is not None:
        found = answer_codes(source, audio)
        return found, f"{found.shape[-1]} frames of the source's answer to {audio}"
    return seeded_codes(
        cfg, frames, SEED
    ), f"{frames} frames drawn at random (seed {SEED}); real ones say more (--audio, --codes)"


def halves(codes: mx.array) -> tuple[mx.array, mx.array]:
    """Frames to choose a packing by, and others to judge it by."""
    middle = codes.shape[-1] // 2
    if not middle:
        raise InputError("the recipe mixed needs at least two frames: one part chooses, the other judges.")
    return codes[..., :middle], codes[..., middle:]


def read_codes(path: Path, cfg: LmConfig) -> mx.array:
    """An array `codes` of shape `[1 + n_q, T]` or `[1, 1 + n_q, T]` from a safetensors, npz or npy file; -1 means nothing."""
    if not path.is_file():
        raise InputError(f"the codes file {path} does not exist.")
    if path.suffix == ".safetensors":
        file = WeightsFile(path)
        values = np.array(file.array("codes")) if "codes" in file else None
    else:
        try:
            stored = np.load(path, allow_pickle=False)
        except (OSError, ValueError):
            raise InputError(f"{path} is not a file of codes; expected safetensors, npz or npy.") from None
        values = stored if isinstance(stored, np.ndarray) else stored.get("codes")
    if values is None:
        raise InputError(f"{path} has no array called 'codes'.")
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    channels = 1 + cfg.n_q
    if values.ndim != 2 or values.shape[0] != channels or not values.shape[1] or values.dtype.kind not in "iu":
        raise InputError(
            f"{path}: 'codes' should be integers of shape [{channels}, frames], found {list(values.shape)}."
        )
    limits = np.array([_text_limit(cfg)] + [cfg.card] * cfg.n_q)[:, None]
    if (values < -1).any() or (values > limits).any():
        raise InputError(f"{path}: codes should be -1, or 0 to {cfg.card} (text: to {limits[0, 0]}).")
    return mx.array(values.astype(np.int32))[None]


def _text_limit(cfg: LmConfig) -> int:
    """The largest text token; two streams in one integer go further."""
    return (cfg.text_card + 1) * (cfg.text_card + 1) if cfg.demux_second_stream else cfg.text_card


def answer_codes(source: Source, audio: str) -> mx.array:
    """What the source says to a recording, sampled with a seed, beside what it hears, undelayed."""
    model, codec = source.model, source.codec
    assert model is not None
    cfg = model.config.lm
    if codec is None or not 0 < cfg.dep_q < cfg.n_q:
        raise InputError("--audio needs a model that listens and answers, with its codec; give codes with --codes.")
    values = sum(int(np.prod(shape)) for shape in model.parameters.values())
    what = f"running {source.name} for --audio"
    memory.refuse_if_too_large(values * default_dtype().size, what, "Give codes in its place (--codes)")
    mimi = load_codec(codec, max(cfg.dep_q, cfg.n_q - cfg.dep_q))
    files = Files(source.name, model.config, model.tensors.path, None, None, None)
    session = Session(Checkpoint(files, model.load(default_dtype()), mimi), seed=SEED)
    heard, said = [], []
    with AudioReader(audio, session.sample_rate, tell=say) as reader:
        for pcm in reader.frames(session.frame_size):
            heard.append(pcm)
            frame = session.step(pcm)
            said.append(np.concatenate([[frame.text_token], frame.codes]))
    late = cfg.max_delay
    if len(said) <= late:
        raise InputError(f"{audio} is too short to compare models on.")
    user = np.array(mimi.encode(mx.array(np.concatenate(heard))[None, None], cfg.n_q - cfg.dep_q))[0]
    # The answer to frame t comes out `late` frames after it.
    own = np.stack(said[late:], axis=1)
    return mx.array(np.concatenate([own, user[:, : own.shape[1]]]).astype(np.int32))[None]
