"""All measurements of a run, each of its models as moshi_mlx runs it."""

import json
from pathlib import Path

from .codec_trials import codec_report
from .interruptions import interruption_report, make_interruptions
from .measure import dialogue_report
from .speakers import HELD_OUT, LEFT_OUT
from .stt_trials import TEXTS, make_recordings, stt_report
from .trials import make_trials
from .tts_trials import tts_report

SEED = 2
TRIALS, UTTERANCES, INTERRUPTIONS, RECORDINGS, SENTENCES = 60, 60, 100, 60, 100


def write_report(model: Path, out: Path) -> None:
    """A JSON file for each model in the folder `model` of a run; the synthesiser left out is asked of the first part's models."""
    out.mkdir(parents=True, exist_ok=True)
    for side, suffix in ((HELD_OUT, ""), (LEFT_OUT, "-left-out")):
        demo, stt = (model / f"{name}{suffix}" for name in ("demo", "demo-stt"))
        _write(
            out / f"demo-{side}.json",
            dict(
                codec=codec_report(demo, UTTERANCES, side),
                dialogue=dialogue_report(demo, make_trials(TRIALS, SEED, side)),
                interruptions=interruption_report(demo, make_interruptions(INTERRUPTIONS, SEED, side)),
            ),
        )
        written = {texts: stt_report(stt, make_recordings(RECORDINGS, SEED, side, texts)) for texts in TEXTS}
        _write(out / f"demo-stt-{side}.json", written)
    tts = model / "demo-tts"
    _write(out / "demo-tts.json", tts_report(tts, tts / "voices", SENTENCES, SEED))


def _write(path: Path, report: dict) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}", flush=True)
