"""Pictures for the report: training curves, and one question with its answer."""

import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from .rates import FRAME_SIZE, SAMPLE_RATE


def read_log(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _curves(log: list[dict], groups: list[tuple[str, list[str]]], path: Path) -> None:
    """One panel for each (title, names of logged values); noisy ones are smoothed."""
    figure, axes = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.4))
    for axis, (title, names) in zip(axes, groups, strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in log if name in entry]
            if not points:
                continue
            steps, values = (np.array(x, float) for x in zip(*points, strict=True))
            width = max(1, len(values) // 100)
            smooth = np.convolve(values, np.ones(width) / width, "valid")
            axis.plot(steps[width - 1 :], smooth, label=name.removeprefix("right_"))
        axis.set(title=title, xlabel="step")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_codec(log: Path, path: Path) -> None:
    groups = [("losses", ["mel", "phonemes"]), ("envelope and commitment", ["envelope", "commitment"]),
              ("STOI, held out", ["stoi", "stoi_min"])]  # fmt: skip
    _curves(read_log(log), groups, path)


def plot_lm(log: Path, path: Path) -> None:
    entries = read_log(log)
    kinds = sorted({name for entry in entries for name in entry if name.startswith("right_")})
    groups = [("losses", ["text", "heard", "totals", "semantic", "acoustic"]), ("right answers, held out", kinds)]
    _curves(entries, groups, path)


def plot_exchange(user: np.ndarray, own: np.ndarray, words: list[tuple[int, str]], path: Path) -> None:
    """Spectrograms of the user's and Moshi's channel [T] on one clock, with the text below."""
    figure, axes = plt.subplots(2, 1, figsize=(11, 5), sharex=True)
    for axis, wav, title in zip(axes, (user, own), ("user", "Moshi"), strict=True):
        axis.specgram(wav + 1e-6, NFFT=512, noverlap=384, Fs=SAMPLE_RATE, vmin=-130, vmax=-40)
        axis.set(ylim=(0, 6000), ylabel=f"{title}\nHz")
    for i, (frame, word) in enumerate(words):
        # Short words would cover each other on one line.
        axes[1].text(frame * FRAME_SIZE / SAMPLE_RATE, 5400 - 450 * (i % 2), word, color="white", fontsize=8)
    axes[1].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
