"""The spoken prompts that ship with the model, and a pictured conversation made of them."""

from pathlib import Path

import numpy as np
import soundfile
import torch

from .augment import at_level
from .codec import FRAME_SIZE, SAMPLE_RATE, Codec
from .espeak import Espeak, Voice
from .generate import Sampling, converse
from .lm import PAD, Lm
from .plots import plot_exchange
from .tokenizer import Tokenizer

# A voice that training never heard. The first sum is also one of the held-out pairs.
VOICE = Voice("en-gb-scotland+f4", rate=145)
PROMPTS = {
    "sum": "what is four plus five", "sum_three": "what is two plus one plus three",
    "greeting": "hello", "name": "what is your name", "repeat": "please repeat the word banana",
    "about": "tell me about yourself",
}  # fmt: skip
LEAD_S, ANSWER_S = 0.4, 3.0


def write_prompts(folder: Path) -> None:
    """24 kHz mono 16-bit files; half a second of silence in front, none after."""
    folder.mkdir(parents=True, exist_ok=True)
    espeak = Espeak()
    lead = np.zeros(int(LEAD_S * SAMPLE_RATE), np.float32)
    for name, text in PROMPTS.items():
        wav = np.concatenate([lead, at_level(espeak.say(text, VOICE).wav, -22.0)])
        soundfile.write(folder / f"{name}.wav", wav, SAMPLE_RATE, subtype="PCM_16")


@torch.no_grad()
def answer_file(codec: Codec, lm: Lm, tokenizer: Tokenizer, sampling: Sampling, user: np.ndarray):
    """user [T] -> (Moshi's sound [T], [(frame, piece of text)])."""
    user = np.pad(user, (0, -len(user) % FRAME_SIZE))
    text, own = converse(lm, codec.encode(torch.from_numpy(user)[None, None]), sampling)
    words = [(f, tokenizer.decode([i])) for f, i in enumerate(text[0].tolist()) if i > PAD]
    return codec.decode(own)[0, 0].numpy(), words


def show_conversation(codec: Codec, lm: Lm, tokenizer: Tokenizer, sampling: Sampling,
                      prompts: Path, out: Path) -> None:  # fmt: skip
    """The prompts one after the other: `conversation.wav` (left Moshi, right user), `.png`."""
    pause = np.zeros(int(ANSWER_S * SAMPLE_RATE), np.float32)
    names = ("greeting", "sum", "repeat")
    parts = [soundfile.read(prompts / f"{name}.wav", dtype="float32")[0] for name in names]
    user = np.concatenate([x for part in parts for x in (part, pause)])
    own, words = answer_file(codec, lm, tokenizer, sampling, user)
    soundfile.write(out / "conversation.wav", np.stack([own[: len(user)], user], 1), SAMPLE_RATE)
    plot_exchange(user, own, words, out / "conversation.png")
