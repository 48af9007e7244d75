"""The model card, written from the measured results."""

from pathlib import Path

from . import domain
from .codec import Codec
from .generate import Sampling
from .lm import Lm, parameter_count
from .voices import HELD_OUT_ACCENT, HELD_OUT_VARIANTS, MOSHI_VOICE

CARD = """\
# The demo model

A very small Moshi: it listens and talks at the same time, in a closed domain. It exists so that
every command of the package can be tried, tested and measured without downloading anything. It is
no assistant and understands nothing outside the list below.

Trained from scratch with `examples/train_demo` (seed {seed}) on speech synthesised by
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
| count | "count to five" | "one two three four five" |
| thanks, bye | "thank you", "goodbye" | "{thanks}", "{bye}" |

It keeps silent while nobody speaks and when the user merely says "uh-huh", "okay", "yeah"; it
stops within about half a second when it is interrupted.

## Results

Measured by `--stage evaluate` on the exported files, float32 arithmetic, with voices of no
variant or accent heard in training ({held_out}). `sum` are only pairs of numbers
({pairs} of 100) never heard in any sum; `repeat` uses phrasings never heard; the other kinds use
known phrasings. "Sound" is the share of answers in which an independent recogniser
(pocketsphinx, grammar of all possible answers) hears exactly the text that the model wrote; for
`silence` and `backchannel`, the share in which no sound is made. Delays run from the end of the
question to the start of the answer on the model's clock; a live loop adds one frame (80 ms).

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


def _dialogue_table(kinds: dict) -> str:
    rows = ["| kind | prompts | text right | 95 % interval | sound right | delay 5/50/95 % (s) | 160-600 ms |",
            "|---|---|---|---|---|---|---|"]  # fmt: skip
    for kind, r in kinds.items():
        low, high = r["text_95"]
        delays = " / ".join(f"{d:.2f}" for d in r["delay_s"]) if "delay_s" in r else "-"
        inside = f"{r['delay_in_range']:.0%}" if "delay_s" in r else "-"
        rows.append(f"| {kind} | {r['count']} | {r['text']:.1%} | {low:.0%}-{high:.0%} | "
                    f"{r['sound']:.1%} | {delays} | {inside} |")  # fmt: skip
    return "\n".join(rows)


def write_card(path: Path, report: dict, lm: Lm, codec: Codec, sampling: Sampling,
               seed: int, espeak: str) -> None:  # fmt: skip
    quality, cfg = report["codec"], lm.cfg
    text = CARD.format(
        seed=seed, espeak=espeak, n_q=codec.cfg.n_q, bins=codec.cfg.bins,
        bps=quality["bits_per_second"], codec_size=parameter_count(codec) / 1e6,
        layers=cfg.num_layers, dim=cfg.dim, depth_layers=cfg.depth_layers, depth_dim=cfg.depth_dim,
        lm_size=parameter_count(lm) / 1e6, words=len(domain.REPEAT_WORDS),
        sampling=", ".join(f"{k} {v:g}" for k, v in vars(sampling).items()),
        greeting=domain.GREETING_ANSWER, name=domain.NAME_ANSWER, about=domain.ABOUT_ANSWER,
        thanks=domain.THANKS_ANSWER, bye=domain.FAREWELL_ANSWER,
        held_out=", ".join((*HELD_OUT_VARIANTS, f"accent {HELD_OUT_ACCENT}")),
        pairs=len(domain.HELD_OUT_SUMS), dialogue=_dialogue_table(report["dialogue"]["kinds"]),
        stoi=quality["stoi"], stoi_5=quality["stoi_5"], decoded=quality["words_decoded"],
        original=quality["words_original"], voice=MOSHI_VOICE.name,
    )  # fmt: skip
    path.write_text(text)
