"""What the demo model can do, at every precision asked for: codec, answers, silence, delays.

    pip install -e . pystoi 'pocketsphinx>=5' scipy soxr rich && apt install libespeak-ng1 espeak-ng-data libflite1
    python benchmarks/demo_model.py [--trials 60] [--kinds sum backchannel] [--seed 2] [--side held-out] [--packings bf16 q8 q4] [--json FILE]

Voices, sums and phrasings are those that the recipe keeps from training; `--side left-out` are festival's (apt install festival
festvox-kallpc16k festvox-kdlpc16k festvox-us-slt-hts). The listener is pocketsphinx. A packing is a command line of
`python -m moshi_mlx.quantize`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from machine import describe_machine
from moshi_mlx.quantize import __main__ as quantize

from moshi_mlx.checkpoint.files import locate

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.train_demo.codec_trials import codec_report  # noqa: E402
from examples.train_demo.measure import dialogue_report  # noqa: E402
from examples.train_demo.speakers import HELD_OUT, LEFT_OUT  # noqa: E402
from examples.train_demo.trials import TRIAL_KINDS, make_trials  # noqa: E402

PACKINGS: dict[str, list[str]] = {
    "bf16": [],
    "q8": ["-q", "8"],
    "q6": ["-q", "6"],
    "q4": ["-q", "4"],
    "q4-heads": ["-q", "4", "--recipe", "heads-bf16"],
    "q3": ["-q", "3"],
    "mxfp4": ["--mode", "mxfp4"],
    "nvfp4": ["--mode", "nvfp4"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="checkpoint folder (default: the one in the package)")
    parser.add_argument("--trials", type=int, default=60, help="prompts of every kind (default: %(default)s)")
    parser.add_argument(
        "--kinds", nargs="+", choices=TRIAL_KINDS, default=TRIAL_KINDS, metavar="KIND",
        help="kinds of prompts: %(choices)s (default: all)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument(
        "--side", choices=[HELD_OUT, LEFT_OUT], default=HELD_OUT, help="who speaks (default: %(default)s)"
    )
    parser.add_argument("--packings", nargs="+", choices=PACKINGS, default=["bf16"])
    parser.add_argument("--no-codec", dest="codec", action="store_false", help="leave the codec out")
    parser.add_argument("--json", metavar="FILE", help="also write every figure and failure to FILE")
    args = parser.parse_args()
    print(describe_machine())
    report: dict = {
        "machine": describe_machine(),
        "trials": args.trials,
        "seed": args.seed,
        "side": args.side,
        "packings": {},
    }
    if args.codec:
        report["codec"] = codec_report(args.model, 60, args.side)
        print("codec: " + ", ".join(f"{name} {value:.3f}" for name, value in report["codec"].items()))
    trials = make_trials(args.trials, args.seed, args.side, args.kinds)
    for name in args.packings:
        with tempfile.TemporaryDirectory() as folder:
            report["packings"][name] = measured = of_packing(args.model, name, Path(folder) / "packed", trials)
        show(name, measured)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")


def of_packing(model: str, name: str, folder: Path, trials: list) -> dict:
    if PACKINGS[name]:
        quantize.main([model, str(folder), *PACKINGS[name], "--no-verify"])
        model = str(folder)
    size = locate(model).moshi.stat().st_size
    return {"megabytes": size / 1e6, **dialogue_report(model, trials)}


def show(name: str, measured: dict) -> None:
    print(f"\n{name}: language model of {measured['megabytes']:.1f} MB")
    print(f"{'kind':12} {'prompts':>7} {'text':>7} {'sound':>7}  delay 5/50/95 % (s), within 160 to 600 ms")
    together = {"all that ask": measured["all"]} if measured["all"] else {}
    for kind, shares in {**measured["kinds"], **together}.items():
        delays = ""
        if "delay_s" in shares:
            low, middle, high = shares["delay_s"]
            delays = f"{low:.2f} {middle:.2f} {high:.2f}, {shares['delay_in_range']:.0%}"
        print(f"{kind:12} {shares['count']:7} {shares['text']:7.1%} {shares['sound']:7.1%}  {delays}")


if __name__ == "__main__":
    main()
