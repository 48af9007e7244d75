"""One streaming frame of the full-size codec, encode and decode with 8 codebooks, beside `rustymimi` in the same process.

    python benchmarks/mimi.py [--blocks 20] [--frames 10] [--codebooks 8]

The two take turns in blocks of frames on the same seeded weights and sound; reported are medians and the ratio block by block.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from machine import add_wait_argument, describe_machine, wait_if_asked
from random_checkpoint import write_mimi

from moshi_mlx.checkpoint import load_mimi_file
from moshi_mlx.config.presets import MIMI_V0_1
from moshi_mlx.models.mimi import mimi_202407
from moshi_mlx.models.mimi_model import MimiModel


class Ours:
    def __init__(self, weights: Path, codebooks: int):
        self.mimi = MimiModel(mimi_202407(codebooks))
        load_mimi_file(self.mimi, weights)
        self.encode = mx.compile(self.mimi.encode_chunk)
        self.decode = mx.compile(self.mimi.decode_chunk)
        self.states = [self.mimi.init_encoder(), self.mimi.init_decoder()]

    def frame(self, pcm: np.ndarray) -> None:
        encoder, decoder = self.states
        self.states = []
        codes, encoder = self.encode(mx.array(pcm), encoder)
        sound, decoder = self.decode(codes, decoder)
        mx.eval(codes, sound, encoder, decoder)
        self.states = [encoder, decoder]
        np.array(sound)


class Rust:
    def __init__(self, weights: Path, codebooks: int):
        import rustymimi

        self.mimi = rustymimi.Tokenizer(str(weights), num_codebooks=codebooks)

    def frame(self, pcm: np.ndarray) -> None:
        self.mimi.decode_step(self.mimi.encode_step(pcm))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--codebooks", type=int, default=8)
    add_wait_argument(parser)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "mimi.safetensors"
        write_mimi(weights, MIMI_V0_1, seed=1)
        peers = {"moshi_mlx": Ours(weights, args.codebooks), "rustymimi": Rust(weights, args.codebooks)}
        rng = np.random.default_rng(0)
        wait_if_asked(args)
        print(describe_machine())
        times: dict[str, list[float]] = {name: [] for name in peers}
        for block in range(args.blocks + 2):
            for name, peer in peers.items():
                spent = []
                for _ in range(args.frames):
                    pcm = rng.uniform(-0.3, 0.3, (1, 1, 1920)).astype(np.float32)
                    start = time.perf_counter()
                    peer.frame(pcm)
                    spent.append(1000 * (time.perf_counter() - start))
                if block >= 2:
                    times[name].append(float(np.median(spent)))
    ours, rust = (np.array(times[n]) for n in peers)
    ratios = ours / rust
    print(f"encode + decode, {args.codebooks} codebooks: moshi_mlx {np.median(ours):.1f} ms, rustymimi {np.median(rust):.1f} ms, "
          f"ratio {np.median(ratios):.3f} (10-90 %: {np.percentile(ratios, 10):.3f} to {np.percentile(ratios, 90):.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
