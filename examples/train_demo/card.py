"""The model card, written from the measured results."""

import json
import math
from pathlib import Path

from safetensors import safe_open

from . import domain
from .export import CONFIG, MIMI, MIMI_CONFIG, MOSHI
from .voices import HELD_OUT_ACCENT, HELD_OUT_VARIANTS, MOSHI_VOICE

CARD = """\
---
license: mit
library_name: moshi_mlx
tags: [moshi, speech-to-speech, full-duplex]
---
# The demo model

A very small Moshi: it listens and talks at the same time, in a closed domain. It exists so that
every command of the package can be tried, tested and measured without downloading anything. It is
no assistant and understands nothing outside the list below.

Trained with `examples/train_demo` (seed {seed}) on speech synthesised by
espeak-ng {espeak}; no recorded voices, no downloaded data or weights.

| part | parameters | stored as |
|---|---|---|
| Mimi codec, 24 kHz, 12.5 Hz, {n_q} codebooks of {bins} ({bps:.0f} bit/s) | {codec_size:.2f} M | float16 |
| language model: {layers} layers of width {dim}, depth transformer {depth_layers} x {depth_dim} | {lm_size:.2f} M | bfloat16 |

Recommended sampling (`lm_gen_config`): {sampling}.

## What it answers

| kind | say, for example | it answers |
|---|---|---|
| sum | "what is three plus four" | "three plus four is seven" |
| sum3 | "how much is two plus one plus three" | "two plus one plus three is six" |
| repeat | "repeat the word banana" ({words} words) | "banana" |
| greet | "hello" | "{greeting}" |
| name | "what is your name" | "{name}" |
| about | "tell me about yourself" | "{about}" |
| count | "count to five" | "one two three four five" (its weakest: often it stops at another number) |
| thanks, bye | "thank you", "goodbye" | "{thanks}", "{bye}" |

It keeps silent while nobody speaks and when the user merely says "uh-huh", "okay", "yeah"; it
stops within about half a second when it is interrupted.

## Results

Measured on these files as moshi_mlx runs them, float32 arithmetic, with voices of no
variant heard in training ({held_out}). `sum` are only pairs of numbers
({pairs} of 100) never heard in any sum; `repeat` uses phrasings never heard; the other kinds use
known phrasings. "Sound" is the share of answers in which an independent recogniser
(pocketsphinx, grammar of all possible answers) hears exactly the text that the model wrote; for
`silence` and `backchannel`, the share in which no sound is made. Delays run from the end of the
question to the start of the answer with both sounds on one clock; a live loop adds the frame it captures (80 ms).

{dialogue}

Codec on held-out sentences and voices: STOI {stoi:.3f} (5th percentile {stoi_5:.3f}); words
recognised {decoded:.1%} after coding, {original:.1%} in the original.

## What it cannot do

* Anything outside the table: other words, other questions, numbers above nine in a question.
* Real voices: it has only ever heard synthetic ones. A clear human speaker may or may not be
  understood; nothing was measured.
* Several voices at once, music, strong noise (training stopped at about 10 dB above noise).

Licence: that of the repository. Moshi's voice is espeak-ng's `{voice}`; espeak-ng's licence
(GPL-3) covers the program, not the sound it makes.
"""


def _dialogue_table(dialogue: dict) -> str:
    rows = ["| kind | prompts | text right | 95 % interval | sound right | delay 5/50/95 % (s) | 160-600 ms |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for kind, r in {**dialogue["kinds"], "all that ask": dialogue["all"]}.items():
        low, high = r["text_95"]
        delays = " / ".join(f"{d:.2f}" for d in r["delay_s"]) if "delay_s" in r else "-"
        inside = f"{r['delay_in_range']:.0%}" if "delay_s" in r else "-"
        rows.append(f"| {kind} | {r['count']} | {r['text']:.1%} | {low:.0%}-{high:.0%} | "
                    f"{r['sound']:.1%} | {delays} | {inside} |")  # fmt: skip
    return "\n".join(rows)


def _parameters(path: Path) -> float:
    """Millions of numbers in a file."""
    with safe_open(path, "np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()) / 1e6  # noqa: SIM118


def write_card(folder: Path, report: dict, seed: int, espeak: str) -> None:
    """`README.md` of the exported folder."""
    quality, cfg = report["codec"], json.loads((folder / CONFIG).read_text())
    quantizer = json.loads((folder / MIMI_CONFIG).read_text())["quantizer"]
    text = CARD.format(
        seed=seed, espeak=espeak, n_q=quantizer["n_q"], bins=quantizer["bins"],
        bps=quality["bits_per_second"], codec_size=_parameters(folder / MIMI),
        layers=cfg["num_layers"], dim=cfg["dim"], depth_layers=cfg["depformer_num_layers"],
        depth_dim=cfg["depformer_dim"], lm_size=_parameters(folder / MOSHI), words=len(domain.REPEAT_WORDS),
        sampling=", ".join(f"{k} {v:g}" for k, v in cfg["lm_gen_config"].items()),
        greeting=domain.GREETING_ANSWER, name=domain.NAME_ANSWER, about=domain.ABOUT_ANSWER,
        thanks=domain.THANKS_ANSWER, bye=domain.FAREWELL_ANSWER,
        held_out=", ".join((*HELD_OUT_VARIANTS, f"accent {HELD_OUT_ACCENT}")),
        pairs=len(domain.HELD_OUT_SUMS), dialogue=_dialogue_table(report["dialogue"]),
        stoi=quality["stoi"], stoi_5=quality["stoi_5"], decoded=quality["words_decoded"],
        original=quality["words_original"], voice=MOSHI_VOICE.name,
    )  # fmt: skip
    (folder / "README.md").write_text(text)
