"""What the small speech-to-text model writes down: word error rate, times of words, ends of turns.

    pip install -e . 'pocketsphinx>=5' scipy soxr rich && apt install libespeak-ng1 espeak-ng-data libflite1
    python benchmarks/demo_stt.py [--recordings 60] [--texts dialogue] [--side held-out] [--model DIR] [--json FILE]

A recording is three sentences with pauses of 3 to 4.5 s. The texts are what the dialogue model can be asked (`dialogue`), plain
sentences of a small grammar (`general`), or chains of common words (`chains`); all by voices kept from training.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from machine import add_trial_arguments, describe_machine, tell

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.train_demo.speakers import HELD_OUT, LEFT_OUT  # noqa: E402
from examples.train_demo.stt_trials import TEXTS, make_recordings, stt_report  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo-stt", help="checkpoint folder (default: the one in the package)")
    parser.add_argument("--recordings", type=int, default=60)
    parser.add_argument("--texts", choices=TEXTS, default="dialogue", help="what is said (default: %(default)s)")
    parser.add_argument(
        "--side", choices=[HELD_OUT, LEFT_OUT], default=HELD_OUT, help="who speaks (default: %(default)s)"
    )
    add_trial_arguments(parser)
    args = parser.parse_args()
    print(describe_machine())
    report = stt_report(args.model, make_recordings(args.recordings, args.seed, args.side, args.texts))
    tell(report, args.json)


if __name__ == "__main__":
    main()
