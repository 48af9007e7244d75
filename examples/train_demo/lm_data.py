"""Sessions as tokens: what the language model trains on."""

import multiprocessing
import random
from pathlib import Path

import numpy as np
import torch

from . import domain
from .codec import Codec
from .dialogue import Answer, Composer
from .export import TOKENIZER, load_codec
from .progress import Progress
from .rates import FRAME_SIZE
from .tokenizer import Tokenizer, text_channel

SESSION_FRAMES = 300  # 24 s, more than twice the attention window
SHARD = 400
SILENCE = "silence.npy"
# Silence encoded around an answer, in frames: more than the codec's window.
LEAD, TAIL = 10, 10


def build_shards(folder: Path, model: Path, sessions: int, seed: int, workers: int) -> None:
    """Write `NNNN.npz` with codes uint8 [S, 16, F] (own, then user), text and heard int16 [S, F] and
    active bool [S, F], using the exported codec and tokenizer in `model`.

    Existing shards are kept, so a killed run goes on where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / SILENCE).exists():
        np.save(folder / SILENCE, OwnVoice(load_codec(model)).codes([]))
    count = -(-sessions // SHARD)
    paths = [folder / f"{index:04d}.npz" for index in range(count)]
    jobs = [(path, model, seed * 100_000 + i) for i, path in enumerate(paths) if not path.exists()]
    # A process for each shard: the synthesiser's global state would make one depend on those before it.
    pool = multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=1)
    with pool, Progress("dialogues", count, "shards", count - len(jobs)) as progress:
        for _ in pool.imap_unordered(_write_shard, jobs):
            progress.advance()


class OwnVoice:
    """Codes of Moshi's side. Answers repeat, so each is encoded once, in silence, and put where it is said."""

    def __init__(self, codec: Codec):
        self.codec = codec
        self._silence = self._encode(np.zeros(SESSION_FRAMES * FRAME_SIZE, np.float32))
        self._known: dict[tuple[str, int], np.ndarray] = {}

    def codes(self, answers: list[Answer]) -> np.ndarray:
        """uint8 [n_q, F] of a session; what follows an answer closely covers its tail."""
        out = self._silence.copy()
        for answer in answers:
            part = self._answer(answer)[:, : SESSION_FRAMES - answer.frame]
            out[:, answer.frame : answer.frame + part.shape[1]] = part
        return out

    def _answer(self, answer: Answer) -> np.ndarray:
        """The codes from the answer's first frame to the end of its tail."""
        key = (answer.utterance.text, answer.stop - answer.start)
        if key not in self._known:
            wav = answer.wav
            tail = TAIL * FRAME_SIZE + -len(wav) % FRAME_SIZE
            self._known[key] = self._encode(np.pad(wav, (LEAD * FRAME_SIZE, tail)))[:, LEAD:]
        return self._known[key]

    def _encode(self, wav: np.ndarray) -> np.ndarray:
        return self.codec.encode(torch.from_numpy(wav)[None, None])[0].numpy().astype(np.uint8)


def _write_shard(job: tuple[Path, Path, int]) -> None:
    path, model, seed = job
    torch.set_num_threads(1)
    own, tokenizer, composer = OwnVoice(load_codec(model)), Tokenizer(model / TOKENIZER), Composer(seed)
    made: dict[str, list[np.ndarray]] = {"codes": [], "text": [], "heard": [], "active": []}
    for _ in range(SHARD):
        session = composer.session(SESSION_FRAMES)
        user = own.codec.encode(torch.from_numpy(session.user)[None, None])[0].numpy().astype(np.uint8)
        made["codes"].append(np.concatenate([own.codes(session.answers), user]))
        made["text"].append(text_channel(session.words, SESSION_FRAMES, tokenizer))
        made["heard"].append(text_channel(session.heard, SESSION_FRAMES, tokenizer))
        made["active"].append(session.active)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **{name: np.stack(rows) for name, rows in made.items()})
    part.rename(path)


class Sessions:
    """All shards in memory."""

    def __init__(self, folder: Path):
        shards = [np.load(path) for path in sorted(folder.glob("[0-9]*[0-9].npz"))]
        if not shards:
            raise FileNotFoundError(f"no dialogue shards in {folder}; run the data stage first")
        self.codes, self.text, self.heard, self.active = (
            np.concatenate([s[name] for s in shards]) for name in ("codes", "text", "heard", "active")
        )

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, rng: np.random.Generator, count: int):
        """codes [B, 17, F] int64 (text first), heard [B, F] int64 and active [B, F]."""
        at = rng.integers(0, len(self), count)
        both = np.concatenate([self.text[at, None].astype(np.int64), self.codes[at]], 1)
        heard = self.heard[at].astype(np.int64)
        return torch.from_numpy(both), torch.from_numpy(heard), torch.from_numpy(self.active[at])


class Recitations:
    """Sums on the text channel, while both sides are silent: text-only data, as in the paper's mixture.

    A conversation holds a handful of sums, and a model that hears them learns their answers by heart; these teach it to
    add what its own text says. Only the totals count, so nobody learns to speak out of silence.
    """

    PACE, PAUSE = (2, 6), (4, 12)  # frames between the words of a sum, and between sums

    def __init__(self, folder: Path, tokenizer: Tokenizer):
        self.silence, self.tokenizer = np.load(folder / SILENCE).astype(np.int64), tokenizer
        pairs = [(a, b) for a in domain.DIGITS for b in domain.DIGITS if (a, b) not in domain.HELD_OUT_SUMS]
        self.kinds = (pairs, domain.three_operands())

    def batch(self, rng: np.random.Generator, count: int):
        """codes [B, 17, F] int64 (text first) and totals [B, F], true where the text is the total of a sum."""
        draw = random.Random(int(rng.integers(1 << 62)))
        codes = np.repeat(np.concatenate([self.silence, self.silence])[None], count, 0)
        texts, totals = zip(*(self._session(draw) for _ in range(count)), strict=True)
        both = np.concatenate([np.stack(texts)[:, None].astype(np.int64), codes], 1)
        return torch.from_numpy(both), torch.from_numpy(np.stack(totals))

    def _session(self, draw: random.Random) -> tuple[np.ndarray, np.ndarray]:
        words: list[tuple[int, str]] = []
        totals, at = np.zeros(SESSION_FRAMES, bool), draw.randint(1, 40)
        while True:
            operands = draw.choice(draw.choice(self.kinds))
            for word in domain.sum_exchange(operands, "").answer.split():
                if at >= SESSION_FRAMES:
                    return text_channel(words, SESSION_FRAMES, self.tokenizer), totals
                words.append((at, word))
                last, at = at, at + draw.randint(*self.PACE)
            totals[last] = True
            at = last + draw.randint(*self.PAUSE)
