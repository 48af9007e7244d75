"""Steps a language model with random weights and reports times: one process per package, driven by `peers.py`.

Runs unchanged on this package and on the published `moshi_mlx` 0.3.0, whichever the interpreter imports; it uses only names both have.
Reads one JSON request a line: {"config", "bits", "seed", "sampler"} builds the model, {"steps": n} runs n frames, and answers in kind.
A frame is: user codes in, the text token and all generated audio codes out as host values.
"""

from __future__ import annotations

import json
import sys
import time

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

import moshi_mlx
from moshi_mlx import models
from moshi_mlx.utils.sampling import Sampler

SAMPLERS = {
    "topk": (dict(temp=0.7, top_k=25), dict(temp=0.8, top_k=250)),
    "topp": (dict(temp=0.8, top_p=0.95), dict(temp=0.8, top_p=0.95)),
    "greedy": (dict(temp=0.0), dict(temp=0.0)),
}


class Runner:
    def __init__(self, config: dict, bits: int | None, seed: int, sampler: str):
        cfg = models.LmConfig.from_config_dict(config)
        self.model = models.Lm(cfg)
        self.others = cfg.audio_codebooks - cfg.generated_codebooks
        self.card = config["card"]
        rng = np.random.default_rng(seed)
        values = []
        for name, p in tree_flatten(self.model.parameters()):
            scale = 1.0 if "norm" in name else 0.5 if "emb" in name else p.shape[-1] ** -0.5
            x = (
                np.ones(p.shape, np.float32)
                if "norm" in name
                else rng.standard_normal(p.shape, dtype=np.float32) * np.float32(scale)
            )
            values.append((name, mx.array(x)))
        self.model.update(tree_unflatten(values))
        if bits is not None:
            nn.quantize(self.model, bits=bits, group_size={4: 32, 8: 64}[bits])
        if hasattr(models.Lm, "prepare"):
            self.model.prepare()
        mx.eval(self.model.parameters())
        text, audio = SAMPLERS[sampler]
        self.gen = models.LmGen(
            self.model, 10**6 if "prepare" in dir(models.Lm) else 4000, Sampler(**text), Sampler(**audio)
        )
        self.rng = np.random.default_rng(seed + 1)

    def frame(self) -> None:
        user = mx.array(self.rng.integers(0, self.card, (1, self.others)))
        text = self.gen.step(user)
        text = text[0] if isinstance(text, tuple) else text
        text[0].item()
        audio = self.gen.last_audio_tokens()
        if audio is not None:
            np.array(audio)

    def run(self, steps: int) -> dict:
        wall, thread = [], []
        for _ in range(steps):
            w, t = time.perf_counter(), time.thread_time()
            self.frame()
            thread.append(1000 * (time.thread_time() - t))
            wall.append(1000 * (time.perf_counter() - w))
        return {
            "wall_ms": wall,
            "thread_ms": thread,
            "peak_bytes": mx.get_peak_memory(),
            "active_bytes": mx.get_active_memory(),
        }


def main() -> None:
    runner = None
    print(json.dumps({"version": moshi_mlx.__version__, "mlx": mx.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "config" in request:
            runner = Runner(**request)
            print(json.dumps({"ready": True}), flush=True)
        else:
            assert runner is not None
            print(json.dumps(runner.run(request["steps"])), flush=True)


if __name__ == "__main__":
    main()
