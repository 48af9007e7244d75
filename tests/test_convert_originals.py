"""The original programs read what we write, and compute the same.

Needs MOSHI_ORIGINALS, a Python that has moshi and transformers, and MOSHI_PUBLISHED, one that has moshi_mlx 0.3: docs/convert.md
says how they are made.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import golden_convert
import mlx.core as mx
import numpy as np
import pytest
from golden_convert import convert, load
from golden_lm import DEPTH_TOL, TEXT_TOL, close

from moshi_mlx.checkpoint import Loader
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.engine.forward import forward

PYTHON = os.environ.get("MOSHI_ORIGINALS")
PUBLISHED = os.environ.get("MOSHI_PUBLISHED")
originals = pytest.mark.skipif(PYTHON is None, reason="MOSHI_ORIGINALS names no Python with the original programs")
published = pytest.mark.skipif(PUBLISHED is None, reason="MOSHI_PUBLISHED names no Python with moshi_mlx 0.3")
GOLDENS = Path(__file__).parent / "goldens"


def run(kind: str, folder: Path, tmp: Path, **given) -> dict[str, np.ndarray]:
    python = PUBLISHED if kind == "mlx" else PYTHON
    assert python is not None
    mx.save_safetensors(str(tmp / "in.safetensors"), {k: mx.array(v) for k, v in given.items()})
    script = Path(__file__).parent / "originals.py"
    command = [python, str(script), kind, str(folder), str(tmp / "in.safetensors"), str(tmp / "out.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return golden_convert.read(tmp / "out.safetensors")


def codes_for(lm, frames: int = 20) -> np.ndarray:
    rng = np.random.default_rng(5)
    audio = rng.integers(0, lm.cfg.card, (1, lm.cfg.n_q, frames))
    return np.concatenate([rng.integers(0, lm.cfg.text_card, (1, 1, frames)), audio], axis=1).astype(np.int64)


@originals
@pytest.mark.parametrize(
    "case",
    [
        "plain", "low_rank", "rope_concat_gqa", "wps_schedule", "lut_cfg", "stt_like", "cross_attn", "extra_heads",
        "legacy_layer_norm", "tts_like",
    ],
)  # fmt: skip
def test_pytorch_reads_our_pytorch(case, tmp_path):
    made = convert(GOLDENS / "lm" / case, tmp_path / "mlx")
    lm = load(made)
    back = convert(made, tmp_path / "pytorch", "--to", "pytorch")
    if lm.cfg.fuser is not None:
        # What the model makes of conditions is compared by the goldens; here all of it has to load.
        assert run("pytorch", back, tmp_path, nothing=np.zeros(1))["loaded"] == 1
        return
    codes = codes_for(lm)
    tokens, theirs = mx.array(codes.astype(np.int32)), run("pytorch", back, tmp_path, codes=codes)
    if not lm.dep_q:
        # The original computes whole sequences of such a model without its delays.
        hidden = lm.out_norm(lm.transformer.forward(lm.embed(tokens)))
        close("text", lm.text_linear(hidden), theirs["text"], TEXT_TOL)
        return
    ours = forward(lm, tokens)
    close("text", ours.text_logits, theirs["text"], TEXT_TOL)
    close("audio", ours.audio_logits, theirs["audio"], DEPTH_TOL)


@originals
@pytest.mark.parametrize("case", ["transformers_moshi", "transformers_stt"])
def test_transformers_reads_what_went_through_ours(case, tmp_path):
    made = convert(GOLDENS / "convert" / case / "source", tmp_path / "mlx")
    back = convert(made, tmp_path / "hf", "--to", "transformers", *_tokenizer(tmp_path, 60))
    data = golden_convert.read(GOLDENS / "convert" / case / "expect.safetensors")
    theirs = run("transformers", back, tmp_path, inputs=data["inputs"][None])
    close("text", theirs["text"][..., : data["text_logits"].shape[-1]], data["text_logits"], TEXT_TOL)


def _tokenizer(tmp: Path, size: int) -> list[str]:
    from random_checkpoint import write_tokenizer

    write_tokenizer(tmp / "t.model", size)
    return ["--tokenizer", str(tmp / "t.model")]


@originals
@pytest.mark.parametrize("case", ["helium_hf", "helium_llama"])
def test_transformers_reads_our_text_models(case, tmp_path):
    source = golden_convert.only(GOLDENS / "family" / case, tmp_path, "config.json", "model.safetensors")
    back = convert(convert(source, tmp_path / "mlx"), tmp_path / "hf", "--to", "transformers")
    prompt = json.loads((GOLDENS / "family" / case / "run.json").read_text())["prompt"]
    theirs = run("transformers", back, tmp_path, inputs=np.array(prompt)[None, None])
    close(
        "logits",
        theirs["text"][0],
        golden_convert.read(GOLDENS / "family" / case / "logits.safetensors")["logits"],
        TEXT_TOL,
    )


@published
@pytest.mark.parametrize("bits", [4, 8])
def test_the_published_package_reads_our_packed_files(bits, tiny_checkpoint, tmp_path):
    from moshi_mlx.quantize.__main__ import main

    # Sizes that fill groups of 64, and numbers a trained model could have.
    assert main([str(tiny_checkpoint), str(tmp_path / "q"), "-q", str(bits)]) == 0
    lm = Loader(locate(tmp_path / "q"), dtype=mx.float32).load().lm
    codes = codes_for(lm, 12)
    theirs = run("mlx", tmp_path / "q", tmp_path, inputs=codes)
    tokens = mx.array(codes.astype(np.int32))
    hidden = lm.out_norm(lm.transformer.forward(lm.embed(tokens)))
    close("text", lm.text_linear(hidden), theirs["text"], 1e-3)
    chosen: list[mx.array] = []

    def choose(k: int, logits: mx.array) -> mx.array:
        chosen.append(logits)
        return tokens[0, 1 + k]

    lm.depformer(hidden[0][:, None], tokens[0, 0], choose)
    close("audio", mx.stack(chosen, axis=1)[None], theirs["audio"], 1e-3)


@originals
def test_codecs_are_read_by_both(tmp_path):
    case = GOLDENS / "mimi" / "tiny_a"
    pcm = golden_convert.read(case / "io.safetensors")["offline.speech.pcm"][:, :, : 1920 * 5]
    kyutai = convert(case / "hf", tmp_path / "kyutai")
    name = next(p.name for p in kyutai.glob("*.safetensors"))
    (kyutai / "config.json").write_text(json.dumps({"mimi_name": name, "mimi_config_name": "mimi.json"}))
    a = run("mimi", kyutai, tmp_path, pcm=pcm)
    (kyutai / "config.json").unlink()
    b = run("mimi-hf", convert(kyutai, tmp_path / "hf", "--to", "transformers"), tmp_path, pcm=pcm)
    assert (a["codes"] == b["codes"]).mean() >= 0.995
