"""Checks of one whole-system golden: a recording through codec, language model and codec again (see its README)."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import soundfile
from golden_lm import close, equal, read

from moshi_mlx import run_inference
from moshi_mlx.audio.files import AudioReader
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session

AUDIO_TOL = 1e-4


def check(folder: Path, scratch: Path) -> None:
    expected = read(folder / "expect.safetensors")
    question = next(folder.glob("*.wav"))
    for compile in (False, True):
        check_session(folder, question, expected, compile)
    check_command(folder, question, expected, scratch)


def check_session(folder: Path, question: Path, expected: dict, compile: bool) -> None:
    greedy = Sampler(temp=0)
    session = Session.load(folder, dtype=mx.float32, text_sampler=greedy, audio_sampler=greedy, compile=compile)
    with AudioReader(question) as reader:
        heard = list(reader.frames(session.frame_size))
    close("input", np.concatenate(heard)[: expected["pcm_in"].size], expected["pcm_in"].reshape(-1), 0)
    used = session.lm.cfg.other_codebooks
    codes = session.mimi.encode(mx.array(np.concatenate(heard))[None, None], used)
    equal("codes in", codes[0], expected["codes_in"][:used])
    frames = [session.step(pcm) for pcm in heard]
    equal("text", np.array([f.text_token for f in frames]), expected["text"])
    equal("codes out", np.stack([f.codes for f in frames], axis=1), expected["codes_out"])
    close("audio", np.concatenate([f.pcm for f in frames]), expected["pcm_out"].reshape(-1), AUDIO_TOL)


def check_command(folder: Path, question: Path, expected: dict, scratch: Path) -> None:
    """The command writes the same sound, rounded to 16 bits."""
    out = scratch / "reply.wav"
    flags = ["--greedy", "--no-compile", "--dtype", "f32", "--tail", "0"]
    run_inference.main([str(question), str(out), "--model", str(folder), *flags])
    pcm, rate = soundfile.read(out, dtype="float32")
    assert rate == 24000
    close("reply.wav", pcm, np.clip(expected["pcm_out"].reshape(-1), -1, 1), AUDIO_TOL)
