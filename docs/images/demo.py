"""Draws demo_conversation.png, three questions to the demo model and its answers, and demo_lm.png, its training. Needs matplotlib.

python docs/images/demo.py conversation docs/images/demo_conversation.png
python docs/images/demo.py training docs/images/demo_lm.png runs/demo/work/lm/log.jsonl [further logs]
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import soundfile

from moshi_mlx.checkpoint.registry import DEMO_FOLDER
from moshi_mlx.session import Session

QUESTIONS, SEED = ("greeting", "sum", "repeat"), 1
AVERAGED = 4  # entries of the log, each of 50 steps
CURVES = {
    "text": "text, silence included",
    "heard": "the user's words",
    "totals": "totals of recited sums",
    "semantic": "codebook 0",
    "acoustic": "codebooks 1 to 7",
}


def conversation(out: str) -> None:
    user = np.concatenate(
        [soundfile.read(DEMO_FOLDER / "prompts" / f"{q}.flac", dtype="float32")[0] for q in QUESTIONS]
    )
    session = Session.load("demo", seed=SEED)
    frames = [session.step(user[i : i + 1920]) for i in range(0, len(user) // 1920 * 1920, 1920)]
    figure, axes = plt.subplots(2, figsize=(11, 4.6), sharex=True, layout="constrained")
    for axis, name, pcm in zip(axes, ("user", "Moshi"), (user, np.concatenate([f.pcm for f in frames])), strict=True):
        axis.specgram(pcm + 1e-5, NFFT=512, Fs=24000, noverlap=384, vmin=-130, vmax=-40)
        axis.set(ylim=(0, 6000), ylabel=f"{name}\nHz")
    words = [(f.index * 0.08, f.text.strip()) for f in frames if f.text.strip()]
    for i, (at, word) in enumerate(words):
        axes[1].text(at, 5450 - 450 * (i % 2), word, color="white", fontsize=8)
    axes[1].set(xlabel="seconds", xlim=(0, len(user) / 24000))
    figure.savefig(out, dpi=100)


def training(out: str, *logs: str) -> None:
    figure, axis = plt.subplots(figsize=(11, 3.6), layout="constrained")
    begun = 0
    for number, path in enumerate(logs):
        lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
        lines = lines[: len(lines) // AVERAGED * AVERAGED]
        steps = np.array([line["step"] for line in lines]).reshape(-1, AVERAGED).max(1)
        for colour, (name, label) in enumerate(CURVES.items()):
            values = np.array([line[name] for line in lines]).reshape(-1, AVERAGED).mean(1)
            axis.plot(begun + steps, values, color=f"C{colour}", label=label if number == 0 else None)
        if number:
            axis.axvline(begun, color="#b9b9b9", linewidth=0.8)
        begun += int(steps[-1])
    axis.set(yscale="log", xlabel="step", ylabel="nats per token")
    axis.legend(frameon=False, ncols=len(CURVES), fontsize=8)
    figure.savefig(out, dpi=100)


if __name__ == "__main__":
    dict(conversation=conversation, training=training)[sys.argv[1]](*sys.argv[2:])
