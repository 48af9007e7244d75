"""Runs the language model of a checkpoint by itself, in a process of its own: this package's, or the published `moshi_mlx` 0.3.0's.

For `moshi_mlx.bench --compare`. Both run the same loop over names that both have.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from ..checkpoint.files import Files
from ..errors import InputError

_BEGIN = """
import json, resource, sys, time
begin = time.perf_counter()
import mlx.core as mx, mlx.nn as nn, numpy as np
import moshi_mlx
from moshi_mlx import models, utils
config, weights, steps = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
"""

_LOAD_OURS = """
from pathlib import Path
from moshi_mlx.checkpoint.loader import Loader
from moshi_mlx.checkpoint.files import Files
from moshi_mlx.config.description import CheckpointConfig
files = Files(weights, CheckpointConfig.from_dict(config), Path(weights), None, None, None)
model = Loader(files, with_codec=False).load().lm
cfg = model.cfg
"""

_LOAD_PUBLISHED = """
cfg = models.LmConfig.from_config_dict(config) if config else models.config_v0_1()
model = models.Lm(cfg)
model.set_dtype(mx.bfloat16)
for bits, group in ((4, 32), (8, 64)):
    if weights.endswith(f".q{bits}.safetensors"):
        nn.quantize(model, bits=bits, group_size=group)
model.load_weights(weights, strict=True)
if mx.default_device() == mx.cpu:
    model.set_dtype(mx.float32)
mx.eval(model.parameters())
"""

# A frame: user codes in, text and audio codes out as host values.
_STEP = """
load = time.perf_counter() - begin
gen = models.LmGen(model, steps + 10, utils.Sampler(temp=0.7, top_k=25), utils.Sampler(temp=0.8, top_k=250))
rng, times = np.random.default_rng(0), []
step = frame = None
for i in range(steps + 3):
    start = time.perf_counter()
    text = gen.step(mx.array(rng.integers(0, config.get("card", 2048), (1, cfg.other_codebooks))))
    text = text[0] if isinstance(text, tuple) else text
    text[0].item()
    audio = gen.last_audio_tokens()
    step = step or time.perf_counter() - begin
    if audio is not None:
        np.array(audio)
        frame = frame or time.perf_counter() - begin
    if i >= 3:
        times.append(1000 * (time.perf_counter() - start))
resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"version": moshi_mlx.__version__, "mlx": mx.__version__, "load_s": round(load, 2), "first_step_s": round(step, 2),
    "first_frame_s": round(frame, 2), "p50": round(float(np.percentile(times, 50)), 2), "p95": round(float(np.percentile(times, 95)), 2),
    "peak": mx.get_peak_memory(), "resident_peak": resident}))
"""


def measure_published(python: str, files: Files, steps: int) -> dict[str, Any]:
    """Version; seconds until loaded, until the first step and until the first audio codes; ms per frame; peak bytes, MLX's and resident."""
    return _run(python, _BEGIN + _LOAD_PUBLISHED + _STEP, files, steps)


def measure_ours(files: Files, steps: int) -> dict[str, Any]:
    """The same of this package."""
    return _run(sys.executable, _BEGIN + _LOAD_OURS + _STEP, files, steps)


def _run(python: str, script: str, files: Files, steps: int) -> dict[str, Any]:
    command = [python, "-c", script, json.dumps(files.config.raw), str(files.moshi.absolute()), str(steps)]
    try:
        # Elsewhere than here, where a folder `moshi_mlx` would hide the installed one.
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    except OSError as e:
        raise InputError(f"--compare {python} cannot be run: {e.strerror}.") from None
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"--compare {python} does not run this checkpoint ({reason}).")
    return json.loads(result.stdout.strip().splitlines()[-1])
