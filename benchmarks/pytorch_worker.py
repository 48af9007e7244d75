"""The PyTorch reference `moshi` behind the same protocol as `worker.py`: one JSON request a line, float32 on the CPU.

A frame is: user codes in, the text token and all generated audio codes out as host values.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ.setdefault("NO_TORCH_COMPILE", "1")
os.environ.setdefault("NO_CUDA_GRAPH", "1")

import torch
from moshi.models import LMGen, loaders


class Runner:
    def __init__(self, config: dict, seed: int, threads: int):
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        model = loaders.get_moshi_lm(None, dict(config), device="cpu", dtype=torch.float32)
        self.others, self.card = model.n_q - model.dep_q, model.card
        self.gen = LMGen(model, temp=0.8, temp_text=0.7, top_k=250, top_k_text=25)
        self.gen.streaming_forever(1)

    def run(self, steps: int) -> dict:
        wall, thread = [], []
        for _ in range(steps):
            user = torch.randint(0, self.card, (1, self.others, 1))
            w, t = time.perf_counter(), time.thread_time()
            out = self.gen.step(user)
            if out is not None:
                out.tolist()
            thread.append(1000 * (time.thread_time() - t))
            wall.append(1000 * (time.perf_counter() - w))
        return {"wall_ms": wall, "thread_ms": thread}


def main() -> None:
    runner = None
    print(json.dumps({"version": "moshi (PyTorch)", "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "config" in request:
            runner = Runner(request["config"], request["seed"], int(os.environ.get("THREADS", "1")))
            print(json.dumps({"ready": True}), flush=True)
        else:
            assert runner is not None
            print(json.dumps(runner.run(request["steps"])), flush=True)


if __name__ == "__main__":
    main()
