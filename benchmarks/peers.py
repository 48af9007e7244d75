"""Compare this package with the published `moshi_mlx` (or PyTorch `moshi`), step by step, in one run on one machine.

    python benchmarks/peers.py --published /path/to/other/venv/bin/python [--case toy-f32 ...]
    python benchmarks/peers.py --pytorch /path/to/other/venv/bin/python [--case toy-f32 ...]
    python benchmarks/peers.py --published ... --after 1500      # late in a conversation

The two run in their own processes and take turns in blocks, so that a machine whose speed drifts slows both. Reported are medians
over all frames after the warm-up, and the ratio of medians block by block. Both use the same MLX, weights drawn alike, the same sampler,
float32 activations.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from machine import add_wait_argument, describe_machine, wait_if_asked

HERE = Path(__file__).resolve().parent
BASE = {
    "card": 2048, "n_q": 16, "dep_q": 8, "delays": [0] + ([0] + [1] * 7) * 2, "text_card": 32000, "hidden_scale": 4.125, "causal": True,
    "layer_scale": None, "context": 3000, "max_period": 10000, "gating": "silu", "norm": "rms_norm_f32", "positional_embedding": "rope",
    "depformer_multi_linear": True, "depformer_pos_emb": "none", "depformer_weights_per_step": True, "depformer_gating": "silu",
}  # fmt: skip


def shape(dim: int, heads: int, layers: int, depth: int, depth_heads: int, depth_layers: int, **changes) -> dict:
    return {
        **BASE, "dim": dim, "num_heads": heads, "num_layers": layers, "depformer_dim": depth, "depformer_num_heads": depth_heads,
        "depformer_num_layers": depth_layers, "depformer_dim_feedforward": int(4.125 * depth), **changes,
    }  # fmt: skip


CASES = {
    "toy-f32": (shape(256, 4, 4, 128, 4, 2), None),
    "small-f32": (shape(1024, 8, 8, 512, 8, 4), None),
    "small-q4": (shape(1024, 8, 8, 512, 8, 4), 4),
    # The structure of Moshi 7B at tiny widths: what is left is the host's work.
    "host-7b": (shape(128, 2, 32, 64, 2, 6), None),
}


class Peer:
    def __init__(self, python: str, request: dict, worker: str = "worker.py"):
        self.process = subprocess.Popen(
            [python, str(HERE / worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        self.about = self._read()
        self.ask(request)

    def _read(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker ended early; its message is above.")
        return json.loads(line)

    def ask(self, request: dict) -> dict:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()


def start(name: str, other: str, worker: str, sampler: str, after: int) -> tuple[Peer, Peer]:
    """Both packages with the models of a case, `after` frames into a conversation."""
    config, bits = CASES[name]
    request = {"config": config, "bits": bits, "seed": 1, "sampler": sampler}
    peers = Peer(sys.executable, request), Peer(other, request, worker)
    for peer in peers:
        peer.ask({"steps": after})
    return peers


def compare(name: str, peers: tuple[Peer, Peer], sampler: str, blocks: int, steps: int) -> dict:
    ours, theirs = peers
    results: dict[str, list[dict]] = {"ours": [], "theirs": []}
    for _ in range(blocks):
        results["ours"].append(ours.ask({"steps": steps}))
        results["theirs"].append(theirs.ask({"steps": steps}))
    row: dict = {"case": name, "sampler": sampler, "versions": [ours.about, theirs.about]}
    for key in ("wall_ms", "thread_ms"):
        a, b = ([np.median(r[key]) for r in results[who]] for who in ("ours", "theirs"))
        ratios = np.array(a) / np.array(b)
        row[key] = {
            "ours": round(float(np.median(a)), 2),
            "theirs": round(float(np.median(b)), 2),
            "ratio": round(float(np.median(ratios)), 3),
            "ratio_range": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)],
        }
    for peer in peers:
        peer.process.kill()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    peer = parser.add_mutually_exclusive_group(required=True)
    peer.add_argument(
        "--published", metavar="PYTHON", help="interpreter in whose environment moshi_mlx 0.3.0 is installed"
    )
    peer.add_argument(
        "--pytorch", metavar="PYTHON", help="interpreter in whose environment moshi (PyTorch) is installed"
    )
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--sampler", choices=["topk", "topp", "greedy"], default="topk")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--steps", type=int, default=20, help="frames of a block (default: %(default)s)")
    parser.add_argument(
        "--after", type=int, default=10, help="frames both run before they are measured (default: %(default)s)"
    )
    add_wait_argument(parser)
    args = parser.parse_args()
    worker = "worker.py" if args.published else "pytorch_worker.py"
    other = args.published or args.pytorch
    cases = {name: start(name, other, worker, args.sampler, args.after) for name in args.case}
    wait_if_asked(args)
    print(f"{describe_machine()}; from frame {args.after}")
    for name, peers in cases.items():
        row = compare(name, peers, args.sampler, args.blocks, args.steps)
        wall, thread = row["wall_ms"], row["thread_ms"]
        print(
            f"{name:10} {args.sampler:6} ms per frame {wall['ours']:8.2f} / {wall['theirs']:8.2f} = {wall['ratio']:.3f} {wall['ratio_range']}"
            f"   host thread ms {thread['ours']:7.2f} / {thread['theirs']:7.2f} = {thread['ratio']:.3f} {thread['ratio_range']}",
            flush=True,
        )


if __name__ == "__main__":
    main()
