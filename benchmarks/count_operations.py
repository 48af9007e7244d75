"""Kernels that Metal launches for one frame: the language model, both halves of the codec, and the frame as one graph.

    python benchmarks/count_operations.py [--part frame|lm|encode|decode] [--depth-steps 8|16] [--precision q4|q8|mxfp4|bf16] [--batch N]
                                          [--kv-bits 8|4] [--sampler topk|topp|greedy] [--plain]

The language model has the structure of Moshi 7B (32 + 8 x 6 layers) at small widths, on which its counts do not depend; the codec has its full
size, on which they do. Rules and sources: `metal.py`. Nothing is evaluated but constants. Functions that `mlx.nn` compiles for itself are fused in
no count of the reference (--plain), which is high by them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from graphs import as_gpu, export, fuse
from metal import Simulation
from peers import shape

from moshi_mlx.config import presets
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.config.parts import MimiConfig
from moshi_mlx.engine.frame import FrameStep
from moshi_mlx.engine.step import Step
from moshi_mlx.models.lm import Lm
from moshi_mlx.models.mimi_model import MimiModel
from moshi_mlx.modules.sampling import Sampler

PRECISIONS = {
    "bf16": None,
    "q4": {"bits": 4, "group_size": 32},
    "q8": {"bits": 8, "group_size": 64},
    "mxfp4": {"bits": 4, "group_size": 32, "mode": "mxfp4"},
}
SAMPLERS = {
    "topk": (Sampler(temp=0.7, top_k=25), Sampler(temp=0.8, top_k=250)),
    "topp": (Sampler(temp=0.8, top_p=0.95), Sampler(temp=0.8, top_p=0.95)),
    "greedy": (Sampler(temp=0), Sampler(temp=0)),
}
PARTS = ("lm", "encode", "decode", "frame")


def make_model(depth_steps: int = 8, precision: str = "q4") -> Lm:
    """Moshi's layers; with 16 depth steps as many codebooks each way, as in the larger Hibiki."""
    n_q, delays = 2 * depth_steps, [0] + ([0] + [1] * (depth_steps - 1)) * 2
    config = shape(
        256, 4, 32, 256, 4, 6, dep_q=depth_steps, n_q=n_q, delays=delays, hidden_scale=4.5, depformer_dim_feedforward=1152,
    )  # fmt: skip
    lm = Lm(CheckpointConfig.from_dict(config).lm)
    lm.set_dtype(mx.bfloat16)
    packing = PRECISIONS[precision]
    if packing is not None:
        nn.quantize(lm, **packing)
    mx.eval(lm.parameters())
    return lm


def make_codec(codebooks: int = 8) -> MimiModel:
    mimi = MimiModel(replace(MimiConfig.from_dict(presets.MIMI_V0_1), num_codebooks=codebooks))
    mx.eval(mimi.parameters())
    return mimi


def simulate(
    part: str,
    batch: int = 1,
    depth_steps: int = 8,
    precision: str = "q4",
    sampler: str = "topk",
    kv_bits: int | None = None,
    compile: bool = True,
) -> Simulation:
    """Launches of one frame of a part, rings of the first size."""
    mimi = make_codec(depth_steps) if part != "lm" else None
    lm = make_model(depth_steps, precision) if part in ("lm", "frame") else None
    with as_gpu():
        run, *trees = _parts(part, lm, mimi, batch, sampler, kv_bits, compile)
        mx.eval(trees)
        nodes, outputs = export(run, *trees)
    return Simulation(fuse(nodes, outputs) if compile else nodes, outputs)


def _parts(
    part: str, lm: Lm | None, mimi: MimiModel | None, batch: int, sampler: str, kv_bits: int | None, compile: bool
) -> tuple:
    """A function of trees of arrays, and the trees."""
    if part == "encode":
        return mimi.encode_chunk, mx.zeros((batch, 1, mimi.frame_size)), mimi.init_encoder(batch)
    if part == "decode":
        return mimi.decode_chunk, mx.zeros((batch, mimi.num_codebooks, 1), mx.int32), mimi.init_decoder(batch)
    step = Step(lm, *SAMPLERS[sampler], compile=compile, kv_bits=kv_bits)
    if part == "frame":
        frame = FrameStep(step, mimi, compile=compile)
        pcm = mx.zeros((batch, mimi.frame_size))
        return lambda state, pcm: frame(state, pcm, 100), frame.init_state([0] * batch, 256), pcm

    def run(state: dict, given: mx.array) -> tuple:
        state, out = step.run(state, given)
        return state, out.frame, out.valid, out.text, out.audio

    return run, step.init_state([0] * batch, 256), mx.zeros((batch, step.clock.given), mx.int32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--depth-steps", type=int, default=8, choices=[8, 16])
    parser.add_argument("--precision", default="q4", choices=list(PRECISIONS))
    parser.add_argument("--sampler", default="topk", choices=list(SAMPLERS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--kv-bits", type=int, choices=[8, 4])
    parser.add_argument("--plain", action="store_true", help="count the uncompiled reference instead")
    args = parser.parse_args()
    for part in args.part:
        found = simulate(part, args.batch, args.depth_steps, args.precision, args.sampler, args.kv_bits, not args.plain)
        copies = ", ".join(f"{n} for a {why}" for why, n in found.copies.items()) or "none"
        print(f"{part}: {found.total} launches; copies only to lie otherwise: {copies}")
        for name, n in found.launches.most_common():
            print(f"{n:6} {name}")


if __name__ == "__main__":
    main()
