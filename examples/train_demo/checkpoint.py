"""Resumable training state and its history."""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch

SAVE_EVERY_S = 240.0


class TrainState:
    """`out/state.pt` holds every object with a state_dict, the step and the random states."""

    def __init__(self, out: Path, objects: dict):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.log_path, self.objects = out / "state.pt", out / "log.jsonl", objects
        self._saved = time.time()

    def resume(self, rng: np.random.Generator) -> int:
        """Load the last checkpoint if there is one; the step to go on from."""
        if not self.path.exists():
            return 0
        stored = torch.load(self.path, weights_only=False)
        for name, thing in self.objects.items():
            thing.load_state_dict(stored["objects"][name])
        rng.bit_generator.state = stored["numpy"]
        torch.set_rng_state(stored["torch"])
        self._forget_after(stored["step"])
        return stored["step"]

    def _forget_after(self, step: int) -> None:
        """Drop history lines of steps that will be done again."""
        if self.log_path.exists():
            lines = self.log_path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self.log_path.write_text("".join(line + "\n" for line in kept))

    def save_sometimes(self, step: int, rng: np.random.Generator, force: bool = False) -> None:
        if not force and time.time() - self._saved < SAVE_EVERY_S:
            return
        stored = dict(
            step=step, objects={k: v.state_dict() for k, v in self.objects.items()},
            numpy=rng.bit_generator.state, torch=torch.get_rng_state(),
        )  # fmt: skip
        part = self.path.with_suffix(".part")
        torch.save(stored, part)
        os.replace(part, self.path)  # a kill during the write leaves the old file
        self._saved = time.time()

    def log(self, step: int, **values) -> None:
        with self.log_path.open("a") as f:
            f.write(json.dumps(dict(step=step, **values)) + "\n")
