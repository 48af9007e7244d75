"""Sessions as tokens: what the language model trains on."""

import multiprocessing
from pathlib import Path

import numpy as np
import torch

from .dialogue import Composer
from .export import TOKENIZER, load_codec
from .progress import Progress
from .tokenizer import Tokenizer, text_channel

SESSION_FRAMES = 300  # 24 s, more than twice the attention window
SHARD = 100


def build_shards(folder: Path, model: Path, sessions: int, seed: int, workers: int) -> None:
    """Write `NNNN.npz` with codes uint8 [S, 16, F] (own, then user), text int16 [S, F] and
    active bool [S, F], using the exported codec and tokenizer in `model`.

    Existing shards are kept, so a killed run goes on where it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-sessions // SHARD)
    paths = [folder / f"{index:04d}.npz" for index in range(count)]
    jobs = [(path, model, seed * 100_000 + i) for i, path in enumerate(paths) if not path.exists()]
    # Processes rather than threads: the synthesiser has global state.
    pool = multiprocessing.get_context("spawn").Pool(workers)
    with pool, Progress("dialogues", count, "shards", count - len(jobs)) as progress:
        for _ in pool.imap_unordered(_write_shard, jobs):
            progress.advance()


def _write_shard(job: tuple[Path, Path, int]) -> None:
    path, model, seed = job
    torch.set_num_threads(1)
    codec, tokenizer, composer = load_codec(model), Tokenizer(model / TOKENIZER), Composer(seed)
    codes, text, active = [], [], []
    for _ in range(SHARD):
        session = composer.session(SESSION_FRAMES)
        wav = torch.from_numpy(np.stack([session.own, session.user]))[:, None]
        codes.append(codec.encode(wav).flatten(0, 1).numpy().astype(np.uint8))
        text.append(text_channel(session.words, SESSION_FRAMES, tokenizer))
        active.append(session.active)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, codes=np.stack(codes), text=np.stack(text), active=np.stack(active))
    part.rename(path)


class Sessions:
    """All shards in memory."""

    def __init__(self, folder: Path):
        shards = [np.load(path) for path in sorted(folder.glob("[0-9]*[0-9].npz"))]
        if not shards:
            raise FileNotFoundError(f"no dialogue shards in {folder}; run the data stage first")
        self.codes, self.text, self.active = (
            np.concatenate([s[name] for s in shards]) for name in ("codes", "text", "active")
        )

    def __len__(self) -> int:
        return len(self.codes)

    def batch(self, rng: np.random.Generator, count: int):
        """codes [B, 17, F] int64 (text first) and active [B, F]."""
        at = rng.integers(0, len(self), count)
        both = np.concatenate([self.text[at, None].astype(np.int64), self.codes[at]], 1)
        return torch.from_numpy(both), torch.from_numpy(self.active[at])
