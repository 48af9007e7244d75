"""Draws speech.png: text and sound of one utterance, step by step. Needs matplotlib.

echo '{"turns": ["Good morning, ..."], "voices": ["..."], "id": "speech"}' > speech.jsonl
python -m moshi_mlx.run_tts speech.jsonl --out-folder out
python docs/images/speech.py out/speech docs/images/speech.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import soundfile

DELAY, ACOUSTIC_DELAY, CARD = 16, 2, int(sys.argv[3]) if len(sys.argv) > 3 else 8001
BLUE, ORANGE, GREY, PALE = "#4a7fb5", "#d98f4e", "#b9b9b9", "#eeeeee"

name, out = sys.argv[1:3]
record = json.loads(Path(f"{name}.json").read_text(encoding="utf-8"))
pcm, rate = soundfile.read(f"{name}.wav")
tokens = [given for _, given in record["logged_text_tokens"]]
figure, (text, sound) = plt.subplots(2, figsize=(11, 3.6), sharex=True, layout="constrained", height_ratios=[3, 2])

for step, token in enumerate(tokens):
    main, second = token % CARD, token // CARD - 1
    text.add_patch(plt.Rectangle((step, 1), 0.9, 0.9, color=PALE if main == 3 else BLUE))
    text.add_patch(plt.Rectangle((step, 0), 0.9, 0.9, color=ORANGE if second == 0 else PALE if second < 0 else GREY))
for word, step in record["transcript"]:
    text.text(step, 2.1, word, fontsize=8)
text.set(ylim=(-0.2, 2.9), yticks=[0.45, 1.45], yticklabels=["new word, look-ahead", "word pieces"])

# Sound of step s is complete when the codebooks behind by two steps are.
block = rate // 250
loud = np.abs(pcm[: len(pcm) // block * block]).reshape(-1, block).max(axis=1)
steps = DELAY + ACOUSTIC_DELAY + np.arange(len(loud)) / 20
sound.fill_between(steps, -loud, loud, color=BLUE, linewidth=0)
for word, step in record["transcript"]:
    at = step + DELAY + ACOUSTIC_DELAY
    sound.axvline(at, color=ORANGE, linewidth=0.8)
    sound.text(at + 0.2, 1.15 * loud.max(), word, fontsize=8)
sound.set(yticks=[], ylim=(-1.1 * loud.max(), 1.6 * loud.max()), ylabel="sound", xlabel="step (80 ms)")
sound.set_xlim(0, max(len(tokens), steps[-1]) + 1)
for axis in (text, sound):
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
figure.savefig(out, dpi=100)
