"""How intelligible the small text-to-speech model is: a recogniser's word error rate beside that of the synthesiser it learnt from.

    pip install -e . 'pocketsphinx>=5' scipy soxr rich && apt install libespeak-ng1 espeak-ng-data
    python benchmarks/demo_tts.py [--sentences 100] [--model DIR] [--json FILE]

Sentences kept from training, of a published list of common words; the listener is pocketsphinx with any of those words in any
order. Also: whether text that comes word by word sounds like text given at once, and the step of the first sound.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from machine import add_trial_arguments, describe_machine, tell

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.train_demo.tts_trials import tts_report  # noqa: E402
from moshi_mlx.checkpoint.files import locate  # noqa: E402
from moshi_mlx.text_to_speech import voices  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default="demo-tts", help="checkpoint folder, with its voices (default: the one in the package)"
    )
    parser.add_argument("--sentences", type=int, default=100)
    add_trial_arguments(parser)
    args = parser.parse_args()
    print(describe_machine())
    report = tts_report(args.model, Path(voices.repo_of(locate(args.model))), args.sentences, args.seed)
    tell(report, args.json)


if __name__ == "__main__":
    main()
