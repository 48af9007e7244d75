"""Moshi talks to Moshi: two conversations in full duplex, each the user of the other, into a stereo file.

    python examples/moshi_talks_to_moshi.py dialogue.wav --model demo --line moshi_mlx/demo/prompts/greeting.flac --seconds 60

Left is A, right is B; neither hears itself. What one says in a frame, the other hears in the next. `--exchange sound` (the
default) passes sound through the codec as a loudspeaker would, `tokens` passes the codes themselves (family.md section 6).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from moshi_mlx import checkpoint, commands
from moshi_mlx.audio.files import AudioWriter, read_audio
from moshi_mlx.checkpoint import Checkpoint
from moshi_mlx.engine.generate import LmGen
from moshi_mlx.errors import InputError
from moshi_mlx.modules.sampling import Sampler
from moshi_mlx.session import Session
from moshi_mlx.text import Detokenizer

FRAME, RATE = 1920, 12.5
QUIET = 0.003  # -50 dBFS

# What both say in one frame: sound [1920] and text of A, then of B.
Exchange = tuple[np.ndarray, str, np.ndarray, str]


def by_sound(a: Session, b: Session, line: np.ndarray) -> Iterator[Exchange]:
    """`line [frames, 1920]` is spoken to A before B is heard: someone has to begin."""
    to_a = to_b = np.zeros(FRAME, np.float32)
    while True:
        spoken = line[a.frames] if a.frames < len(line) else to_a
        said_a, said_b = a.step(spoken), b.step(to_b)
        to_a, to_b = said_b.pcm, said_a.pcm
        yield said_a.pcm, said_a.text, said_b.pcm, said_b.text


class TokenSide:
    """A language model that hears and says codes, and a decoder to listen to it."""

    def __init__(self, loaded: Checkpoint, seed: int, samplers: dict):
        assert loaded.mimi is not None
        self.mimi, cfg = loaded.mimi, loaded.lm.cfg
        self.heard = cfg.n_q - cfg.dep_q
        self._gen = LmGen(loaded.lm, batch_size=1, seed=seed, **samplers)
        # The first step reads initial tokens only.
        self._gen.step(np.full((1, self.heard), cfg.card, np.int32))
        self._decoder = self.mimi.init_decoder()
        self._text = Detokenizer(loaded.tokenizer, cfg) if loaded.tokenizer else None

    def step(self, codes: mx.array) -> tuple[np.ndarray, str, mx.array | None]:
        """The other's codes `[1, n]` -> sound, text and own codes `[1, dep_q]`, None while there are none."""
        self._gen.step(codes[:, : self.heard])
        own = self._gen.last_audio_tokens()
        if own is None:
            return np.zeros(FRAME, np.float32), "", None
        pcm, self._decoder = self.mimi.decode_chunk(own[..., None], self._decoder)
        token = int(np.array(self._gen.frame)[0, 0])
        return np.array(pcm)[0, 0], self._text.feed(token) if self._text else "", own


def by_tokens(a: TokenSide, b: TokenSide, line: np.ndarray) -> Iterator[Exchange]:
    """As `by_sound`. While a side has said nothing, and while the line is spoken to A, codes come from an encoder."""
    encoder, silence = a.mimi.init_encoder(), a.mimi.init_encoder()
    own_a = own_b = None
    frame = 0
    while True:
        nothing, silence = a.mimi.encode_chunk(mx.zeros((1, 1, FRAME)), silence, a.heard)
        to_a = nothing[..., 0] if own_b is None else own_b
        to_b = nothing[..., 0] if own_a is None else own_a
        if frame < len(line):
            spoken, encoder = a.mimi.encode_chunk(mx.array(line[frame])[None, None], encoder, a.heard)
            to_a = spoken[..., 0]
        pcm_a, text_a, own_a = a.step(to_a)
        pcm_b, text_b, own_b = b.step(to_b)
        frame += 1
        yield pcm_a, text_a, pcm_b, text_b


def lines_of(path: str | None) -> np.ndarray:
    """A spoken line as frames `[n, 1920]`."""
    pcm = np.zeros(0, np.float32) if path is None else read_audio(path)
    return np.pad(pcm, (0, -len(pcm) % FRAME)).reshape(-1, FRAME)


def write(exchange: Iterator[Exchange], output: str, seconds: float, give_up: float) -> float:
    """Write until the time is over or both have been silent for `give_up` seconds; returns the seconds written."""
    silent, turn, frames = 0, "", 0
    with AudioWriter(output, channels=2) as writer:
        for pcm_a, text_a, pcm_b, text_b in exchange:
            writer.write(np.stack([pcm_a, pcm_b], axis=1))
            frames += 1
            for name, text in (("A", text_a), ("B", text_b)):
                if text:
                    print(("" if turn == name else f"\n{name}:") + text, end="", flush=True)
                    turn = name
            loud = max(np.abs(pcm_a).max(), np.abs(pcm_b).max()) > QUIET
            silent = 0 if loud or text_a or text_b else silent + 1
            if frames >= seconds * RATE or silent >= give_up * RATE:
                break
        print()
        writer.commit()
    return frames / RATE


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("output")
    p.add_argument("--model", help="checkpoint folder or short name")
    p.add_argument("--other-model", help="checkpoint of B (default: that of A)")
    p.add_argument("--line", metavar="FILE", help="a recording spoken to A at the beginning")
    p.add_argument("--seconds", type=float, default=60.0)
    p.add_argument("--give-up", type=float, default=10.0, metavar="SECONDS", help="end after so long a silence of both")
    p.add_argument("--exchange", choices=["sound", "tokens"], default="sound")
    p.add_argument("--seed", type=int, default=0, help="of A; that of B is one more")
    p.add_argument("--greedy", action="store_true", help="always take the most probable token")
    p.add_argument("--voice", nargs=2, metavar=("A", "B"), help="voices of the two sides, for PersonaPlex")
    p.add_argument("--text-prompt", nargs=2, metavar=("A", "B"), help="roles of the two sides, for PersonaPlex")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    line = lines_of(args.line)
    first = checkpoint.load(args.model)
    both = (first, checkpoint.load(args.other_model) if args.other_model else first)
    samplers = {"text_sampler": Sampler(temp=0), "audio_sampler": Sampler(temp=0)} if args.greedy else {}
    if args.exchange == "tokens":
        if args.voice or args.text_prompt:
            raise InputError("--voice and --text-prompt need --exchange sound.")
        a, b = (TokenSide(loaded, args.seed + i, samplers) for i, loaded in enumerate(both))
        exchange = by_tokens(a, b, line)
    else:
        voices, roles = args.voice or (None, None), args.text_prompt or (None, None)
        sides = [
            Session(loaded, seed=args.seed + i, voice=voices[i], text_prompt=roles[i], **samplers)
            for i, loaded in enumerate(both)
        ]
        exchange = by_sound(sides[0], sides[1], line)
    seconds = write(exchange, args.output, args.seconds, args.give_up)
    print(f"wrote {seconds:.1f} s to {args.output}")
    return 0


if __name__ == "__main__":
    commands.run(main)
