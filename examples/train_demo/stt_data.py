"""Talk to be written down: sentences of users on a clock, their words a fixed delay later, and the pauses between them."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .codec import Codec
from .encode import encode_scenes
from .rates import FRAME_RATE, FRAME_SIZE
from .scene import Scene, next_frame, samples
from .takes import ASK, OTHER, Takes
from .tokenizer import Tokenizer, text_channel

TALK_FRAMES = 300
DELAY_FRAMES = 12  # of the text behind the sound: 0.96 s
# Pauses that the heads tell, in seconds, and the silence they wait for before they say so: a breath is none.
PAUSES_S, WAIT_FRAMES = (0.5, 1.0, 2.0, 3.0), 3
ASK_SHARE, QUIET_SHARE, SAME_VOICE_SHARE = 0.4, 0.04, 0.8
PAUSE, TALK = 0, 1  # classes of a head


class Talker:
    """Makes random talks of `users`; the same seed gives the same ones."""

    def __init__(self, users: Takes, seed: str):
        self.users, self.rng = users, random.Random(seed)

    def talk(self) -> Scene:
        rng, scene = self.rng, Scene(TALK_FRAMES * FRAME_SIZE)
        at = samples(rng.choice((rng.uniform(0.05, 0.6), rng.uniform(0.5, 4))))
        speaker = rng.choice(self.users.speakers)
        while rng.random() >= QUIET_SHARE:
            if rng.random() >= SAME_VOICE_SHARE:
                speaker = rng.choice(self.users.speakers)
            take = rng.choice(self.users.of[speaker, ASK if rng.random() < ASK_SHARE else OTHER])
            if at + take.length >= scene.length:
                break
            scene.add(take, at)
            at += take.length + samples(self._gap())
        return scene

    def _gap(self) -> float:
        """Seconds between two sentences: now and then hardly any, mostly the end of a turn."""
        rng = self.rng
        return rng.choices((rng.uniform(0.05, 0.4), rng.uniform(0.6, 2.0), rng.uniform(2.0, 6.0)), (0.12, 0.18, 0.7))[0]


def pause_labels(scene: Scene) -> np.ndarray:
    """uint8 [4, F]: class `PAUSE` in a pause of at least so long, once it has lasted `WAIT_FRAMES`.

    Frame f is what is known when the sound up to its end has been heard.
    """
    labels = np.full((len(PAUSES_S), TALK_FRAMES), TALK, np.uint8)
    spans = sorted((p.at, p.stop) for p in scene.placed)
    silent_from = [0, *(next_frame(stop) for _, stop in spans)]
    # Nobody knows how long the silence at the end will last; it counts as long.
    silent_until = [*(at // FRAME_SIZE for at, _ in spans), TALK_FRAMES + 100]
    for begin, end in zip(silent_from, silent_until, strict=True):
        for head, seconds in enumerate(PAUSES_S):
            if end - begin >= seconds * FRAME_RATE:
                labels[head, begin + WAIT_FRAMES : end] = PAUSE
    return labels


def build_talks(
    path: Path, codec: Codec, tokenizer: Tokenizer, users: Takes, talks: int, channels: int, seed: str
) -> None:
    """Write codes uint8 [N, 8, F], text int16 [N, F] and pauses uint8 [N, 4, F], N = `talks * channels`."""
    talker = Talker(users, seed)
    scenes = [talker.talk() for _ in range(talks)]
    texts = []
    for scene in scenes:
        words = [(onset // FRAME_SIZE + DELAY_FRAMES, word) for p in scene.placed for word, onset in p.words]
        texts.append(text_channel(words, TALK_FRAMES, tokenizer, boundaries=True))
    pauses = np.stack([pause_labels(scene) for scene in scenes])
    codes = encode_scenes(codec, users, scenes * channels, "talks", through_channel=True)
    part = path.with_suffix(".part.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(part, codes=codes, text=np.tile(np.stack(texts), (channels, 1)), pauses=np.tile(pauses, (channels, 1, 1)))
    part.rename(path)


class Talks:
    """All talks of some files on one device."""

    def __init__(self, paths: list[Path], device: torch.device):
        files = [np.load(path) for path in paths]
        names = ("codes", "text", "pauses")
        self.codes, self.text, self.pauses = (
            torch.from_numpy(np.concatenate([f[n] for f in files])).to(device) for n in names
        )

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """codes [B, 9, F] int64, text first; pauses [B, 4, F] int64."""
        at = torch.randint(0, len(self.codes), (count,), device=self.codes.device)
        return torch.cat([self.text[at, None].long(), self.codes[at].long()], 1), self.pauses[at].long()
