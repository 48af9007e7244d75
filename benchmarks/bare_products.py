"""A frame of the language model against nothing but its weight products, in one run.

    python benchmarks/bare_products.py --model DIR [--rounds 3]

The products are those a frame makes: each weight matrix once, each depth matrix once per codebook, on vectors of the right length, evaluated
together: as the step makes them (on a CPU, on all cores) and, bare, each by one `mx.quantized_matmul` or `@`. What the first ratio has above 1
is everything else: attention, norms, sampling, launches, the host, and on a CPU the cores' waiting for each other.
"""

from __future__ import annotations

import argparse
import time

import mlx.core as mx
import numpy as np
from machine import add_wait_argument, describe_machine, wait_if_asked

from moshi_mlx import checkpoint
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.models.lm import Lm
from moshi_mlx.modules.matrix import Matrix


def products(lm: Lm) -> list[tuple[Matrix, mx.array]]:
    """Matrix and input of every weight product of one frame."""
    layers = list(lm.transformer.layers)
    matrices = [lm.text_linear]
    for part in lm.depformer.slices:
        layers += part.transformer.layers
        matrices += [part.linear_in, part.linear_out]
    for layer in layers:
        matrices += [layer.self_attn.in_proj, layer.self_attn.out_proj, layer.gating.linear_in, layer.gating.linear_out]
    inputs: dict[int, mx.array] = {}
    out = []
    for m in map(Matrix.of, matrices):
        size = m.weight.shape[1] if m.scales is None else m.scales.shape[1] * m.group_size
        inputs.setdefault(size, mx.random.normal((1, size)).astype(lm.dtype))
        out.append((m, inputs[size]))
    mx.eval(list(inputs.values()))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    add_wait_argument(parser)
    args = parser.parse_args()
    lm = checkpoint.load(args.model, with_codec=False).lm
    gen = LmGen(lm, seed=0)
    calls = products(lm)
    user = np.zeros((1, lm.cfg.other_codebooks), int)

    def bare(m: Matrix, x: mx.array) -> mx.array:
        if m.scales is None:
            return x @ m.weight.T
        return mx.quantized_matmul(x, m.weight, m.scales, m.biases, True, m.group_size, m.bits, m.mode)

    def frame() -> None:
        gen.step(user)
        np.array(gen.frame)

    wait_if_asked(args)
    print(describe_machine())
    runs = {
        "products": lambda: mx.eval([m.product(x) for m, x in calls]),
        "bare": lambda: mx.eval([bare(m, x) for m, x in calls]),
        "frame": frame,
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(args.rounds + 1):
        for name, call in runs.items():
            start = time.perf_counter()
            call()
            if round_:
                times[name].append(1000 * (time.perf_counter() - start))
    ms = {name: float(np.median(values)) for name, values in times.items()}
    print(
        f"{len(calls)} products {ms['products']:.1f} ms (bare {ms['bare']:.1f} ms), frame {ms['frame']:.1f} ms, "
        f"ratio {ms['frame'] / ms['products']:.3f} (to the bare {ms['frame'] / ms['bare']:.3f}), over {args.rounds} rounds"
    )


if __name__ == "__main__":
    main()
