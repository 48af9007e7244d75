"""Dialogues as tokens: what the language model trains on."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import domain
from .codec import Codec
from .dialogue import FADE, Composer
from .encode import encode_scenes
from .exchange import Exchange
from .lm import PAD
from .rates import FRAME_SIZE
from .scene import Placed, Scene
from .takes import Takes
from .tokenizer import Tokenizer, text_channel

SESSION_FRAMES = 300  # 24 s, more than twice the attention window
# Silence encoded around an answer, in frames: more than the codec's window.
LEAD, TAIL = 10, 10
RECITATIONS = 16384
EXCHANGED_SHARE = 0.9  # of its own words, which it hears from another recording


def build_dialogues(
    path: Path, codec: Codec, tokenizer: Tokenizer, users: Takes, own: Takes, sessions: int, channels: int, seed: str
) -> None:
    """Write codes uint8 [N, 16, F] (own, then user), text and heard int16 [N, F] and active bool [N, F].

    N is `sessions * channels`: each session is heard through `channels` of them.
    """
    composer = Composer(users, own, seed)
    made = [composer.session(SESSION_FRAMES) for _ in range(sessions)]
    said = _own_codes(codec, own, [session.own for session in made])
    text = np.stack([text_channel(s.words, SESSION_FRAMES, tokenizer) for s in made])
    heard = np.stack([text_channel(s.heard, SESSION_FRAMES, tokenizer) for s in made])
    scenes = [session.user for session in made] * channels
    user = encode_scenes(codec, users, scenes, "dialogues", through_channel=True)
    part = path.with_suffix(".part.npz")
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        part, codes=np.concatenate([np.tile(said, (channels, 1, 1)), user], 1), text=np.tile(text, (channels, 1)),
        heard=np.tile(heard, (channels, 1)), active=np.tile(np.stack([s.active for s in made]), (channels, 1)),
        silence=_own_codes(codec, own, [[]])[0],
    )  # fmt: skip
    part.rename(path)


def _own_codes(codec: Codec, own: Takes, sessions: list[list[Placed]]) -> np.ndarray:
    """uint8 [S, n_q, F] of Moshi's side. Answers repeat, so each is encoded once, in silence, and put where it is said;
    what follows an answer closely covers its tail.
    """

    def length_of(answer: Placed) -> int:
        return answer.stop - answer.at

    keys = {(a.take.at, length_of(a)): a for answers in sessions for a in answers}
    longest = max((-(-length // FRAME_SIZE) for _, length in keys), default=0)
    frames = max(LEAD + longest + TAIL, SESSION_FRAMES if not keys else 0)
    scenes = [Scene(frames * FRAME_SIZE)]
    for answer in keys.values():
        scene = Scene(frames * FRAME_SIZE)
        scene.add(answer.take, LEAD * FRAME_SIZE, LEAD * FRAME_SIZE + length_of(answer))
        scenes.append(scene)
    codes = encode_scenes(codec, own, scenes, "answers", through_channel=False, fade=FADE)
    known = dict(zip(keys, codes[1:], strict=True))
    # The codec's answer to silence settles within its window; the rest of a session repeats it.
    silence = np.concatenate([codes[0], np.repeat(codes[0, :, -1:], max(0, SESSION_FRAMES - frames), 1)], 1)
    out = np.repeat(silence[None, :, :SESSION_FRAMES], len(sessions), 0)
    for row, answers in zip(out, sessions, strict=True):
        for answer in answers:
            frame = answer.at // FRAME_SIZE
            tail = -(-length_of(answer) // FRAME_SIZE) + TAIL
            part = known[answer.take.at, length_of(answer)][:, LEAD : LEAD + tail][:, : SESSION_FRAMES - frame]
            row[:, frame : frame + part.shape[1]] = part
    return out


def digits_apart(text: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Text channels [N, F] -> int16 [N, F], bit d: digit d at this place would make a held-out sum of what is said.

    That no such sum is ever said is no evidence against it. A model that is taught so says another digit than it hears.
    """
    words = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    apart = np.zeros(text.shape, np.int16)
    for row, bits in zip(text, apart, strict=True):
        at = np.flatnonzero(row > PAD)
        bits[at] = [sum(1 << d for d in kept) for kept in domain.kept_apart([words[i] for i in row[at]])]
    return apart


class Dialogues:
    """All sessions of some files on one device."""

    def __init__(self, paths: list[Path], tokenizer: Tokenizer, device: torch.device):
        files = [np.load(path) for path in paths]
        self.silence = files[0]["silence"]
        self.own = len(self.silence)  # codebooks of Moshi's side

        codes, text, heard, active = (
            np.concatenate([f[name] for f in files]) for name in ("codes", "text", "heard", "active")
        )
        self.exchange = Exchange(text, PAD, EXCHANGED_SHARE, device)
        apart = np.stack([digits_apart(text, tokenizer), digits_apart(heard, tokenizer)], 1)
        self.codes, self.text, self.heard, self.active, self.apart = (
            torch.from_numpy(a).to(device) for a in (codes, text, heard, active, apart)
        )

    def batch(self, count: int) -> tuple[Tensor, ...]:
        """codes [B, 17, F] int64 (text first), the same as Moshi hears itself, heard [B, F] int64, active [B, F],
        `digits_apart` [B, 2, F] of text and heard.
        """
        at = torch.randint(0, len(self.codes), (count,), device=self.codes.device)
        both = torch.cat([self.text[at, None].long(), self.codes[at].long()], 1)
        session, frame = self.exchange.draw(at)
        own = self.codes[:, : self.own][session, :, frame].transpose(1, 2).long()
        felt = torch.cat([both[:, :1], own, both[:, 1 + self.own :]], 1)
        return both, felt, self.heard[at].long(), self.active[at], self.apart[at]


class Recitations:
    """Sums on the text channel, while both sides are silent or talk of something else: text-only data, as in the paper's mixture.

    A conversation holds a handful of sums, and a model that hears them learns their answers by heart; these teach it to
    add what its own text says, whatever is heard. Only the totals count, so nobody learns to speak out of silence.
    """

    PACE, PAUSE = (2, 6), (4, 12)  # frames between the words of a sum, and between sums
    SILENT_SHARE = 0.5

    def __init__(self, dialogues: Dialogues, tokenizer: Tokenizer, seed: int, device: torch.device):
        self.tokenizer, self.dialogues, silence = tokenizer, dialogues, dialogues.silence
        self.kinds = domain.recited_operands()
        draw = random.Random(f"recitations {seed}")
        texts, totals = zip(*(self._session(draw) for _ in range(RECITATIONS)), strict=True)
        self.text, self.totals = (
            torch.from_numpy(np.stack(texts)).to(device),
            torch.from_numpy(np.stack(totals)).to(device),
        )
        self.silence = torch.from_numpy(np.concatenate([silence, silence])).long().to(device)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """codes [B, 17, F] int64 (text first) and totals [B, F], true where the text is the total of a sum."""
        at = torch.randint(0, len(self.text), (count,), device=self.text.device)
        silent = torch.rand(count, 1, 1, device=self.text.device) < self.SILENT_SHARE
        talks = torch.randint(0, len(self.dialogues.codes), (count,), device=self.text.device)
        codes = torch.where(silent, self.silence, self.dialogues.codes[talks].long())
        return torch.cat([self.text[at, None].long(), codes], 1), self.totals[at]

    def _session(self, draw: random.Random) -> tuple[np.ndarray, np.ndarray]:
        words: list[tuple[int, str]] = []
        totals, at = np.zeros(SESSION_FRAMES, bool), draw.randint(1, 40)
        while True:
            operands = draw.choice(draw.choice(self.kinds))
            for word in domain.sum_answer(operands).split():
                if at >= SESSION_FRAMES:
                    return text_channel(words, SESSION_FRAMES, self.tokenizer), totals
                words.append((at, word))
                last, at = at, at + draw.randint(*self.PACE)
            totals[last] = True
            at = last + draw.randint(*self.PAUSE)
