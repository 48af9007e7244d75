"""Resumable training state and its history."""

import json
import os
import time
from pathlib import Path

import torch

SAVE_EVERY_S = 60.0


class TrainState:
    """`out/state.pt` holds every object with a state_dict, the step, the time spent and the random states."""

    def __init__(self, out: Path, objects: dict, device: torch.device):
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.log_path, self.objects = out / "state.pt", out / "log.jsonl", objects
        self.device, self._saved = device, time.monotonic()

    def resume(self) -> tuple[int, float]:
        """Load the last checkpoint if there is one; the step to go on from, and the seconds that were spent."""
        if not self.path.exists():
            return 0, 0.0
        stored = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, thing in self.objects.items():
            thing.load_state_dict(stored["objects"][name])
        torch.set_rng_state(stored["rng"])
        if self.device.type == "cuda" and stored["device_rng"] is not None:
            torch.cuda.set_rng_state(stored["device_rng"])
        self._forget_after(stored["step"])
        return stored["step"], stored["spent"]

    def _forget_after(self, step: int) -> None:
        """Drop history lines of steps that will be done again."""
        if self.log_path.exists():
            lines = self.log_path.read_text().splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self.log_path.write_text("".join(line + "\n" for line in kept))

    def save_sometimes(self, step: int, spent: float, force: bool = False) -> None:
        if not force and time.monotonic() - self._saved < SAVE_EVERY_S:
            return
        device_rng = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        stored = dict(
            step=step, spent=spent, objects={k: v.state_dict() for k, v in self.objects.items()},
            rng=torch.get_rng_state(), device_rng=device_rng,
        )  # fmt: skip
        part = self.path.with_suffix(".part")
        torch.save(stored, part)
        os.replace(part, self.path)  # a kill during the write leaves the old file
        self._saved = time.monotonic()

    def log(self, step: int, **values) -> None:
        with self.log_path.open("a") as f:
            f.write(json.dumps(dict(step=step, **values)) + "\n")
