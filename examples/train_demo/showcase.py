"""The spoken prompts that ship with the model, and a pictured conversation made of them."""

from pathlib import Path

import numpy as np
import soundfile

from moshi_mlx.session import Session

from . import domain
from .augment import at_level
from .espeak import Espeak, Voice
from .measure import talk
from .plots import plot_exchange
from .rates import FRAME_SIZE, SAMPLE_RATE
from .voices import MOSHI_VOICE

# A voice that training never heard.
VOICE = Voice("en-gb-scotland+f4", rate=145)
PROMPTS = {
    "sum": "what is three plus four", "sum_three": "what is two plus one plus three",
    "greeting": "hello", "name": "what is your name", "repeat": "please repeat the word banana",
    "about": "tell me about yourself",
}  # fmt: skip
LEAD_S, PATIENCE_S = 0.4, 1.0


def write_prompts(folder: Path) -> None:
    """24 kHz mono 16-bit files: some silence, the question, and silence for as long as the answer takes."""
    folder.mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    lead = _silence(LEAD_S)
    for name, text in PROMPTS.items():
        answer = len(espeak.say(domain.answer_to(text), MOSHI_VOICE).wav) / SAMPLE_RATE
        wav = np.concatenate([lead, at_level(espeak.say(text, VOICE).wav, -22.0), _silence(answer + PATIENCE_S)])
        soundfile.write(folder / f"{name}.flac", wav, SAMPLE_RATE, subtype="PCM_16")


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * SAMPLE_RATE), np.float32)


def show_conversation(model: Path, out: Path) -> None:
    """Some prompts one after the other: `conversation.wav` (left Moshi, right user), `.png`."""
    names = ("greeting", "sum", "repeat")
    user = np.concatenate([soundfile.read(model / "prompts" / f"{name}.flac", dtype="float32")[0] for name in names])
    user = np.pad(user, (0, -len(user) % FRAME_SIZE))
    [(own, words)] = talk(Session.load(model), user[None])
    soundfile.write(out / "conversation.wav", np.stack([own, user], 1), SAMPLE_RATE)
    plot_exchange(user, own, words, out / "conversation.png")
