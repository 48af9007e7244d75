"""Time and peak memory of converting and quantising a checkpoint of full size, beside `nn.quantize` of the whole model.

    python benchmarks/convert_memory.py DIR                    # makes 15 GB of random weights in shards, needs 45 GB of disk
    python benchmarks/convert_memory.py DIR --preset tiny      # the same steps in seconds

Everything under DIR is removed at the end unless --keep is given. Each step runs in a process of its own; its peak is the
largest resident set the system counted for it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from random_checkpoint import PRESETS, draw, write_mimi, write_tokenizer

from moshi_mlx.checkpoint.fill import parameter_shapes
from moshi_mlx.checkpoint.layouts.inverse import pytorch_file
from moshi_mlx.checkpoint.weights_writer import WeightsWriter
from moshi_mlx.config import presets
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.models.lm import Lm

WHOLE = """
import sys, mlx.core as mx, mlx.nn as nn
from moshi_mlx.models import Lm, LmConfig
import json
folder, out = sys.argv[1:]
config = json.load(open(folder + "/config.json"))
model = Lm(LmConfig.from_config_dict(config))
nn.Module.load_weights(model, folder + "/model.safetensors", strict=True)
nn.quantize(model, bits=4, group_size=32)
model.save_weights(out)
"""


def write_shards(folder: Path, config: dict, shard_bytes: int) -> int:
    """A random model in the PyTorch layout, tensor by tensor. Returns its bytes."""
    cfg = CheckpointConfig.from_dict(config).lm
    shapes = parameter_shapes(Lm(cfg))
    tensors = [(name, expr.shape(shapes.__getitem__)) for name, expr in sorted(pytorch_file(shapes, cfg).items())]
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = total = 0
    for name, shape in tensors:
        nbytes = 2 * int(np.prod(shape))
        if size + nbytes > shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, shape))
        size, total = size + nbytes, total + nbytes
    weight_map = {}
    for i, members in enumerate(shards, 1):
        file = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        with WeightsWriter(folder / file, [(name, "BF16", shape) for name, shape in members]) as writer:
            for name, shape in members:
                writer.write(name, draw(1, name, mx.zeros(shape, mx.bfloat16), None))
                weight_map[name] = file
            writer.commit()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def make(folder: Path, preset: str) -> int:
    lm, mimi = PRESETS[preset]
    folder.mkdir(parents=True)
    config = {**lm, "model_type": "moshi"}
    if mimi is not None:
        config["mimi_config_name"] = "mimi.json"
        (folder / "mimi.json").write_text(json.dumps(mimi))
    (folder / "config.json").write_text(json.dumps(config))
    write_mimi(folder / presets.MIMI_NAME, mimi or presets.MIMI_V0_1, 1)
    write_tokenizer(folder / presets.TOKENIZER_NAME, lm["text_card"])
    return write_shards(folder, config, 4_000_000_000)


def measured(what: str, command: list[str]) -> None:
    """Run a step; print its time and the most memory it held."""
    start = time.perf_counter()
    child = os.posix_spawn(sys.executable, [sys.executable, *command], os.environ)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{what} failed with {os.waitstatus_to_exitcode(status)}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(f"| {what} | {seconds:.0f} s | {peak / 1e9:.2f} GB |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="moshi-7b")
    parser.add_argument("--report", action="store_true", help="also measure a quantisation with its report")
    parser.add_argument("--keep", action="store_true", help="leave the files")
    args = parser.parse_args()
    if args.folder.exists():
        raise SystemExit(f"{args.folder} exists; name a folder to make.")
    source, mlx, q4 = args.folder / "source", args.folder / "mlx", args.folder / "q4"
    try:
        total = make(source, args.preset)
        print(f"{args.preset}: {total / 1e9:.1f} GB in {len(list(source.glob('model-*')))} shards, bfloat16\n")
        print("| step | time | peak memory |\n|---|---|---|")
        no = "--no-verify"
        measured("convert to MLX", ["-m", "moshi_mlx.convert", str(source), str(mlx), no])
        measured("quantise to q4", ["-m", "moshi_mlx.quantize", str(source), str(q4), "-q", "4", no])
        measured("nn.quantize of the whole model", ["-c", WHOLE, str(mlx), str(args.folder / "whole.safetensors")])
        same = files_equal(q4 / "model.q4.safetensors", args.folder / "whole.safetensors")
        print(f"\nboth q4 files hold the same numbers: {same}")
        if args.report:
            shutil.rmtree(q4)
            (args.folder / "whole.safetensors").unlink()
            report = ["--report", str(args.folder / "report.json"), "--frames", "16", "--no-picture"]
            measured(
                "quantise to q4, with a report",
                ["-m", "moshi_mlx.quantize", str(source), str(q4), "-q", "4", no, *report],
            )
    finally:
        if not args.keep:
            shutil.rmtree(args.folder, ignore_errors=True)


def files_equal(a: Path, b: Path) -> bool:
    """Tensor by tensor."""
    x, y = mx.load(str(a)), mx.load(str(b))
    assert isinstance(x, dict) and isinstance(y, dict)
    return sorted(x) == sorted(y) and all(mx.array_equal(x.pop(n), y.pop(n)).item() for n in sorted(x))


if __name__ == "__main__":
    main()
