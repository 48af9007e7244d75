"""Operations per frame of the language model, forced evaluations and traces: counts that carry over to Metal.

    python benchmarks/count_operations.py [--depth-steps 8|16] [--precision q4|q8|mxfp4|bf16] [--sampler topk|greedy] [--plain]

The structure is Moshi 7B's (32 + 8 x 6 layers) at small widths; counts do not depend on widths. Views move no data and are listed apart.
"""

from __future__ import annotations

import argparse
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
from operations import STAND_INS, VIEWS, as_metal, count
from peers import shape

from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.engine.step import Step
from moshi_mlx.models.lm import Lm
from moshi_mlx.modules.sampling import Sampler

PRECISIONS = {
    "bf16": None,
    "q4": {"bits": 4, "group_size": 32},
    "q8": {"bits": 8, "group_size": 64},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
}
SAMPLERS = {
    "topk": (Sampler(temp=0.7, top_k=25), Sampler(temp=0.8, top_k=250)),
    "greedy": (Sampler(temp=0), Sampler(temp=0)),
}


def frame_operations(
    depth_steps: int = 8, precision: str = "q4", sampler: str = "topk", compile: bool = True
) -> Counter:
    """Operations by name of one frame: user codes in, text and audio tokens and the new state out."""
    n_q, delays = 2 * depth_steps, [0] + ([0] + [1] * (depth_steps - 1)) * 2
    config = shape(
        256,
        4,
        32,
        256,
        4,
        6,
        dep_q=depth_steps,
        n_q=n_q,
        delays=delays,
        hidden_scale=4.5,
        depformer_dim_feedforward=1152,
    )
    lm = Lm(CheckpointConfig.from_dict(config).lm)
    lm.set_dtype(mx.bfloat16)
    if PRECISIONS[precision] is not None:
        nn.quantize(lm, **PRECISIONS[precision])
    with as_metal():
        step = Step(lm, *SAMPLERS[sampler], compile=compile)
        state = step.init_state([0], 256)
        given = mx.zeros((1, step.clock.given), mx.int32)
        mx.eval(state, given, lm.parameters())
        state, out = step.run(state, given)
        names = count(state, [out.frame, out.valid, out.text, out.audio])
    return Counter({STAND_INS.get(name, name): n for name, n in names.items()})


def split(operations: Counter) -> tuple[Counter, Counter]:
    """Operations that compute or move data, and views."""
    compute = Counter({n: c for n, c in operations.items() if n.split()[0] not in VIEWS})
    return compute, operations - compute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth-steps", type=int, default=8, choices=[8, 16])
    parser.add_argument("--precision", default="q4", choices=list(PRECISIONS))
    parser.add_argument("--sampler", default="topk", choices=list(SAMPLERS))
    parser.add_argument("--plain", action="store_true", help="count the uncompiled reference instead")
    args = parser.parse_args()
    compute, views = split(frame_operations(args.depth_steps, args.precision, args.sampler, not args.plain))
    print(f"{sum(compute.values())} operations, {sum(views.values())} views")
    for name, n in compute.most_common():
        print(f"{n:6} {name[:100]}")


if __name__ == "__main__":
    main()
