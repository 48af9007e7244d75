"""The training loop of every part: optimiser, schedule, checkpoints, history.

The losses draw their own batches, on the device; on a GPU one whole step is recorded once and replayed, since launching
thousands of small kernels takes longer than running them.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from moshi_mlx.errors import MoshiError

from .checkpoint import TrainState
from .losses import cosine
from .progress import Progress

Losses = Callable[[], dict[str, Tensor]]
# Steps between looks at the clock, which wait for the device.
CHUNK, LOG_EVERY = 10, 50


@dataclass(frozen=True)
class Pace:
    """How long to train: `steps`, or `seconds` of this device if they are over first; the learning rate falls accordingly."""

    steps: int
    seconds: float | None = None
    learning_rate: float = 1e-3
    warmup: int = 100  # steps
    betas: tuple[float, float] = (0.9, 0.97)
    weight_decay: float = 0.1  # of matrices
    clip: float = 1.0  # largest norm of the gradient


def device_of(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise MoshiError("PyTorch finds no CUDA device; leave out --device, or say --device cpu.")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def optimiser_of(parameters: list[nn.Parameter], pace: Pace) -> torch.optim.AdamW:
    on_gpu = parameters[0].is_cuda
    groups = [
        dict(params=[p for p in parameters if p.ndim > 1], weight_decay=pace.weight_decay),
        dict(params=[p for p in parameters if p.ndim <= 1], weight_decay=0.0),
    ]
    rate = torch.tensor(pace.learning_rate, device=parameters[0].device) if on_gpu else pace.learning_rate
    return torch.optim.AdamW(groups, rate, pace.betas, fused=True, capturable=on_gpu)


def train(name: str, out: Path, modules: dict[str, nn.Module], losses: Losses, pace: Pace, graph: bool = True) -> int:
    """Train `modules` until the pace is over, going on from `out/state.pt`; returns the steps done. `out/log.jsonl` tells."""
    parameters = list(itertools.chain(*(m.parameters() for m in modules.values())))
    device = parameters[0].device
    optimiser = optimiser_of(parameters, pace)
    state = TrainState(out, dict(modules, optimiser=optimiser), device)
    step, spent = state.resume()
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(device)
    begun = time.monotonic() - spent

    def one_step() -> dict[str, Tensor]:
        found = losses()
        found["total"].backward()
        found["norm"] = nn.utils.clip_grad_norm_(parameters, pace.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return {k: v.detach() for k, v in found.items()}

    act = Recorded(one_step) if graph and device.type == "cuda" else one_step
    with Progress(name, pace.steps, "steps", step) as progress:
        while True:
            spent = time.monotonic() - begun
            part = max(step / pace.steps, spent / pace.seconds if pace.seconds else 0.0)
            if part >= 1:
                break
            set_rate(optimiser, pace.learning_rate * cosine(part, step, pace.warmup))
            count = min(CHUNK, pace.steps - step)
            for _ in range(count):
                found = act()
            step += count
            if device.type == "cuda":
                torch.cuda.synchronize()
            progress.advance(count, f"loss {found['total'].item():.3f}")
            if step % LOG_EVERY == 0:
                state.log(step, spent=spent, **{k: v.item() for k, v in found.items()})
            state.save_sometimes(step, spent)
    state.save_sometimes(step, spent, force=True)
    return step


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


class Recorded:
    """A step as one recording of a GPU's work, made after a few ordinary steps."""

    WARM = 3

    def __init__(self, step: Callable[[], dict[str, Tensor]]):
        self._step, self._graph = step, None
        self._done = 0
        self._side = torch.cuda.Stream()

    def __call__(self) -> dict[str, Tensor]:
        if self._graph is not None:
            self._graph.replay()
            return self._found
        self._done += 1
        if self._done <= self.WARM:
            self._side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._side):
                found = self._step()
            torch.cuda.current_stream().wait_stream(self._side)
            return found
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._found = self._step()
        self._graph.replay()
        return self._found
