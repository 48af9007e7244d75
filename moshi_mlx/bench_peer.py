"""Runs the published `moshi_mlx` 0.3.0 on a checkpoint, in another environment, for `moshi_mlx.bench --compare`."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from .checkpoint import Files
from .errors import InputError

# Executed by the other environment's interpreter. A frame: user codes in, text and audio codes out as host values.
_SCRIPT = """
import json, sys, time
begin = time.perf_counter()
import mlx.core as mx, mlx.nn as nn, numpy as np
import moshi_mlx
from moshi_mlx import models, utils
config, weights, steps = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
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
load = time.perf_counter() - begin
gen = models.LmGen(model, steps + 10, utils.Sampler(temp=0.7, top_k=25), utils.Sampler(temp=0.8, top_k=250))
rng, times = np.random.default_rng(0), []
first = None
for i in range(steps + 3):
    start = time.perf_counter()
    text = gen.step(mx.array(rng.integers(0, config.get("card", 2048), (1, cfg.other_codebooks))))
    text = text[0] if isinstance(text, tuple) else text
    text[0].item()
    audio = gen.last_audio_tokens()
    if audio is not None:
        np.array(audio)
        if first is None:
            first = time.perf_counter() - begin
    if i >= 3:
        times.append(1000 * (time.perf_counter() - start))
print(json.dumps({"version": moshi_mlx.__version__, "mlx": mx.__version__, "load_s": round(load, 2), "first_frame_s": round(first, 2),
    "p50": round(float(np.percentile(times, 50)), 2), "p95": round(float(np.percentile(times, 95)), 2), "peak": mx.get_peak_memory()}))
"""


def measure(python: str, files: Files, steps: int) -> dict[str, Any]:
    """Load time, time to the first frame, ms per frame of the language model alone, peak memory."""
    command = [python, "-c", _SCRIPT, json.dumps(files.config.raw), str(files.moshi), str(steps)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/")
    except OSError as e:
        raise InputError(f"--compare {python} cannot be run: {e.strerror}.") from None
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"--compare {python}: the published package does not run this checkpoint ({reason}).")
    return json.loads(result.stdout.strip().splitlines()[-1])
