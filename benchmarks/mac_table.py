"""The table of docs/macs.md: milliseconds per frame of Moshi 7B by Apple chip, computed from bytes and launches. Nothing is measured.

    python benchmarks/mac_table.py            # prints it
    python benchmarks/mac_table.py --write    # puts it into docs/macs.md

A frame reads its weights (`moshi_mlx.models.traffic`) and the keys and values of the window; it cannot be faster than those bytes at the chip's
nominal bandwidth, the *bound*. The *estimate* takes three quarters of that bandwidth, about what others reach with 4-bit products, and 2 to 5 us
for each of the frame's launches (`count_operations.py`), which is a guess at what one costs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from moshi_mlx.config import presets
from moshi_mlx.config.description import CheckpointConfig
from moshi_mlx.config.parts import MimiConfig
from moshi_mlx.machine.chips import BANDWIDTH
from moshi_mlx.models.lm import Lm
from moshi_mlx.models.mimi_model import MimiModel
from moshi_mlx.models.traffic import frame_traffic

PAGE = Path(__file__).resolve().parent.parent / "docs" / "macs.md"
BEGIN, END = "<!-- table: python benchmarks/mac_table.py --write -->", "<!-- end of table -->"
LAUNCHES, LAUNCH_US = 1484, (2, 5)
REACHED = 0.75
FRAME_MS, COMFORTABLE = 80, 0.85
PACKINGS = {"bf16": None, "8 bit": (8, 64), "4 bit": (4, 32)}
# Keys and values of a position: 32 layers, 4096 wide, two of them, bfloat16; packed to 8 bits with a scale and a bias for every 64.
POSITION = 32 * 4096 * 2 * 2
PACKED = (8 + 32 / 64) / 16
# Seconds of --context, and whether keys and values are packed.
WINDOWS = {
    "": (240, 1.0),
    "--context 120": (120, 1.0),
    "--context 60": (60, 1.0),
    "--context 60 --kv-bits 8": (60, PACKED),
}


@cache
def weights(precision: str) -> int:
    """Bytes of weights that a frame reads, the codec's included."""
    lm = Lm(CheckpointConfig.from_dict(presets.MOSHI_7B).lm)
    lm.set_dtype(mx.bfloat16)
    packing = PACKINGS[precision]
    if packing is not None:
        nn.quantize(lm, bits=packing[0], group_size=packing[1])
    mimi = MimiModel(replace(MimiConfig.from_dict(presets.MIMI_V0_1), num_codebooks=8))
    return frame_traffic(lm, mimi).total


def window(seconds: int, share: float) -> float:
    return seconds * 12.5 * POSITION * share


def estimate(size: float, bandwidth: int) -> tuple[float, float, float]:
    """Bound, and the estimate's two ends, in ms."""
    read = size / bandwidth / 1e6
    low, high = (read / REACHED + LAUNCHES * us / 1000 for us in LAUNCH_US)
    return read, low, high


def advice(bandwidth: int) -> str:
    """The best precision, then the longest window, whose estimate leaves room in the frame; else the one that comes closest."""
    for limit, remark in ((COMFORTABLE * FRAME_MS, ""), (FRAME_MS, ", with little to spare")):
        for precision in PACKINGS:
            for flags, (seconds, share) in WINDOWS.items():
                if estimate(weights(precision) + window(seconds, share), bandwidth)[2] <= limit:
                    bits = "" if precision == "bf16" else f"-q {precision[0]}"
                    return f"`{' '.join(filter(None, (bits, flags))) or '-q 16'}`{remark}"
    return "no real-time talk; smaller models"


def cell(size: float, bandwidth: int) -> str:
    bound, low, high = estimate(size, bandwidth)
    text = f"{low:.0f}-{high:.0f} ({bound:.0f})"
    return text if high <= FRAME_MS else f"*{text}*"


def table() -> str:
    full = window(240, 1.0)
    lines = [
        "| chip | GB/s | 4 bit, start | 4 bit, after 4 min | 8 bit, start | 8 bit, after 4 min | bf16, after 4 min | what to choose |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, bandwidth in BANDWIDTH.items():
        cells = [
            cell(weights(p) + kv, bandwidth)
            for p, kv in (("4 bit", 0), ("4 bit", full), ("8 bit", 0), ("8 bit", full), ("bf16", full))
        ]
        lines.append(f"| {name} | {bandwidth} | {' | '.join(cells)} | {advice(bandwidth)} |")
    return "\n".join(lines)


def page() -> str:
    """The page with today's table."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into docs/macs.md")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
