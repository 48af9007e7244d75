"""What a batch of conversations costs: ms per frame of the language model at batch 1, 2, 4 and 8, in one run.

    python benchmarks/batches.py [--case small-f32 ...] [--batch 1 2 4 8]

The batches take turns in blocks. Row b of every batch has the same seed and user as row b of the others; the tokens are compared.
"""

from __future__ import annotations

import argparse
import time

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from machine import add_wait_argument, describe_machine, wait_if_asked
from mlx.utils import tree_flatten, tree_unflatten
from peers import CASES

from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.models.lm import Lm


def random_lm(name: str) -> Lm:
    config, bits = CASES[name]
    lm = Lm(CheckpointConfig.from_dict(config).lm)
    keys = iter(mx.random.split(mx.random.key(1), 10_000))
    values = []
    for path, p in tree_flatten(lm.parameters()):
        scale = 0.5 if "emb" in path else p.shape[-1] ** -0.5
        values.append((path, mx.ones(p.shape) if "norm" in path else scale * mx.random.normal(p.shape, key=next(keys))))
    lm.update(tree_unflatten(values))
    if bits is not None:
        nn.quantize(lm, bits=bits, group_size={4: 32, 8: 64}[bits])
    mx.eval(lm.parameters())
    return lm


class Batch:
    def __init__(self, lm: Lm, size: int):
        self.size, self.card = size, lm.cfg.card
        self.gen = LmGen(lm, batch_size=size, seed=list(range(size)))
        self.users = [np.random.default_rng(100 + b) for b in range(size)]
        self.ms: list[float] = []
        self.rows: list[np.ndarray] = []

    def frame(self) -> float:
        """Seconds of one frame."""
        width = self.gen.model.cfg.other_codebooks
        user = np.stack([rng.integers(0, self.card, width) for rng in self.users])
        start = time.perf_counter()
        self.gen.step(user)
        self.rows.append(np.array(self.gen.frame))
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=["toy-f32", "small-f32"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10, help="frames of a block")
    add_wait_argument(parser)
    args = parser.parse_args()
    cases = {}
    for name in args.case:
        lm = random_lm(name)
        cases[name] = [Batch(lm, size) for size in args.batch]
        for batch in cases[name]:
            for _ in range(5):
                batch.frame()
    wait_if_asked(args)
    print(describe_machine())
    for name, batches in cases.items():
        for _ in range(args.blocks):
            for batch in batches:
                batch.ms.append(1000 * float(np.median([batch.frame() for _ in range(args.steps)])))
        alone = np.stack(batches[0].rows)
        for batch in batches:
            own, ms = np.stack(batch.rows), float(np.median(batch.ms))
            same = bool((own[:, : alone.shape[1]] == alone[:, : batch.size]).all())
            print(
                f"{name:10} batch {batch.size}: {ms:8.2f} ms per frame, {ms / batch.size:8.2f} ms per conversation, "
                f"tokens of the first batch's rows {'equal' if same else 'DIFFER'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
