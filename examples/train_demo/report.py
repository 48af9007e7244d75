"""All measurements of a run, each of its models as moshi_mlx runs it."""

import json
import math
from pathlib import Path

from .codec_trials import codec_report
from .interruptions import interruption_report, make_interruptions
from .measure import dialogue_report
from .speakers import HELD_OUT, LEFT_OUT
from .stt_trials import TEXTS, make_recordings, stt_report
from .trials import make_trials
from .tts_trials import tts_report

SEED = 2
# For each trial: what is counted over everything at once needs more of it.
INTERRUPTIONS, SENTENCES = 5 / 3, 5 / 3


def write_report(model: Path, out: Path, trials: int) -> None:
    """A JSON file for each model in the folder `model` of a run; the synthesiser left out is asked of the first part's models.

    `trials`: prompts of every kind, recordings of every kind of text, and utterances through the codec.
    """
    out.mkdir(parents=True, exist_ok=True)
    interruptions, sentences = (math.ceil(share * trials) for share in (INTERRUPTIONS, SENTENCES))
    for side, suffix in ((HELD_OUT, ""), (LEFT_OUT, "-left-out")):
        demo, stt = (model / f"{name}{suffix}" for name in ("demo", "demo-stt"))
        _write(
            out / f"demo-{side}.json",
            dict(
                codec=codec_report(demo, trials, side),
                dialogue=dialogue_report(demo, make_trials(trials, SEED, side)),
                interruptions=interruption_report(demo, make_interruptions(interruptions, SEED, side)),
            ),
        )
        written = {texts: stt_report(stt, make_recordings(trials, SEED, side, texts)) for texts in TEXTS}
        _write(out / f"demo-stt-{side}.json", written)
    tts = model / "demo-tts"
    _write(out / "demo-tts.json", tts_report(tts, tts / "voices", sentences, SEED))


def _write(path: Path, report: dict) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}", flush=True)
