"""How the demo model stops when it is interrupted: how often within half a second, and whether it answers what was said.

pip install -e . 'pocketsphinx>=5' scipy soxr rich && apt install libespeak-ng1 espeak-ng-data libflite1
python benchmarks/demo_interruptions.py [--cases 100] [--side held-out] [--model demo] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from machine import add_trial_arguments, describe_machine, tell

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.train_demo.interruptions import interruption_report, make_interruptions  # noqa: E402
from examples.train_demo.speakers import HELD_OUT, LEFT_OUT  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="checkpoint folder (default: the one in the package)")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument(
        "--side", choices=[HELD_OUT, LEFT_OUT], default=HELD_OUT, help="who speaks (default: %(default)s)"
    )
    add_trial_arguments(parser)
    args = parser.parse_args()
    print(describe_machine())
    report = interruption_report(args.model, make_interruptions(args.cases, args.seed, args.side))
    tell(report, args.json)


if __name__ == "__main__":
    main()
