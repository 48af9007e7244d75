"""The main job on a spoken question, without network or sound card: `python examples/demo.py OUT_DIR`.

Until a trained demo model ships with the package, the small checkpoint is written here with random weights: the reply shows
that everything works, and says nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUESTION = ROOT / "examples" / "question.wav"


def main() -> None:
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "out")
    out.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from random_checkpoint import write

    from moshi_mlx import commands, run_inference

    checkpoint = out / "random-checkpoint"
    if not (checkpoint / "config.json").exists():
        write(checkpoint, "tiny", None, seed=1)
    print("This checkpoint has random weights: the reply is noise and made-up syllables.", file=sys.stderr)
    reply = [str(QUESTION), str(out / "reply.wav"), "--text", str(out / "reply.txt")]
    commands.run(run_inference.main, [*reply, "--model", str(checkpoint)])


if __name__ == "__main__":
    main()
