"""Audio in, text tokens and pause probabilities out, frame by frame: the codec's encoder and the language model (family.md 1).

The model's first step, which reads initial tokens only, is made at the start, so that every frame is heard in the step it
is given to and none is lost (family.md 0.2).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from .. import arguments
from ..audio.samples import as_frame, as_samples, refuse_nonsense
from ..config.reader import MOST
from ..engine.generate import LmGen
from ..engine.state import copy_containers, let_go, put_rows
from ..errors import InputError
from ..machine.owner import Owner
from ..models.lm_model import LmModel
from ..models.mimi_model import MimiModel
from ..modules.sampling import Sampler
from .prompt import TextPrompt


@dataclass(frozen=True)
class Heard:
    """One step, not evaluated: `text [B]` int, and `pauses [B, heads]`, the probability of a pause by each extra head."""

    text: mx.array
    pauses: mx.array | None


@dataclass(frozen=True)
class HeardFrames:
    """Several frames: `tokens [F, B]` int32, `pauses [F, B, heads]` float32 (no heads: `[F, B, 0]`)."""

    tokens: np.ndarray
    pauses: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


class Listener:
    """`batch` streams, each of which joins, pauses and leaves by itself. Belongs to the thread that made it.

    `mimi` may be None for a caller that has codes. `own_clocks` (by default, where there are several streams) is what joining and
    pausing need; without it they are heard in lockstep.
    """

    def __init__(
        self,
        lm: LmModel,
        mimi: MimiModel | None,
        batch: int = 1,
        *,
        sampler: Sampler | None = None,
        prompt: TextPrompt | None = None,
        compile: bool = True,
        seed: int = 0,
        own_clocks: bool | None = None,
        kv_bits: int | None = None,
    ):
        if lm.dep_q or not lm.n_q:
            raise InputError("this is not a speech-to-text model: it should listen to codebooks and generate none.")
        batch = arguments.whole("batch", batch, 1, MOST)
        self._owner = Owner("this listener")
        self.lm, self.mimi, self.batch, self.prompt = lm, mimi, batch, prompt
        self.own_clocks = batch > 1 if own_clocks is None else own_clocks
        self._gen = LmGen(
            lm,
            text_sampler=sampler or Sampler(temp=0),
            batch_size=batch,
            on_text_logits_hook=prompt.constrain if prompt else None,
            on_text_hook=prompt.observe if prompt else None,
            compile=compile,
            seed=seed,
            support_out_of_sync=self.own_clocks,
            kv_bits=kv_bits,
        )
        wrap: Callable = mx.compile if compile else lambda f: f
        self._encode_chunk = wrap(self._encode)
        self._heads = wrap(self._pauses)
        self._blank = None if mimi is None else mimi.init_encoder(1, lockstep=False)
        self.reset()

    def reset(self) -> None:
        """Begin anew, before the first step."""
        self._gen.reset()
        if self.mimi is not None:
            self._encoder = self.mimi.init_encoder(self.batch, lockstep=not self.own_clocks)
        if self.prompt is not None:
            self.prompt.reset()

    def join(self, row: int, seed: int | None = None) -> None:
        """Begin a new stream in `row`, before its first step; nothing is left there of the one before."""
        row = self._row(row)
        if not self.own_clocks:
            if self.batch > 1:
                raise InputError("a stream of several begins by itself only in a listener with own_clocks.")
            self.reset()
            return
        self._gen.join(row, seed)
        if self.mimi is not None:
            self._encoder = put_rows(self._encoder, self._blank, [mx.array([row], mx.int32)])
            mx.eval(self._encoder)
        if self.prompt is not None:
            self.prompt.reset(row)

    @property
    def heads(self) -> int:
        """Pause heads of the model."""
        return len(self.lm.extra_heads)

    def _encode(self, pcm: mx.array, state: dict, execute: mx.array | None = None) -> tuple[mx.array, dict]:
        assert self.mimi is not None
        return self.mimi.encode_chunk(pcm, state, self.lm.n_q, execute)

    def _pauses(self, hidden: mx.array) -> mx.array:
        """Probabilities of a pause `[B, heads]` float32 from the trunk's output."""
        return mx.concatenate([p[:, 0, :1] for p in self.lm.heads(hidden)], axis=-1).astype(mx.float32)

    def start(self, rows: Sequence[int] | None = None) -> Heard:
        """The first step, of all streams or of `rows`: nothing is heard yet. Its token is that of model time 0."""
        silence = mx.full((self.batch, self.lm.n_q), self.lm.cfg.card, mx.int32)
        return self.hear(silence, None if rows is None else np.isin(np.arange(self.batch), rows))

    def hear(self, codes: mx.array, execute: np.ndarray | None = None) -> Heard:
        """One frame of `codes [B, n_q]`, heard by all streams or by those where `execute` bool `[B]` is true."""
        if self.prompt is not None:
            self.prompt.executed = execute
        text = self._gen.advance(codes, execute=execute)[:, 0]
        return Heard(text, self._heads(self._gen.output.hidden) if self.heads else None)

    def listen(self, pcm: np.ndarray, execute: np.ndarray | None = None) -> HeardFrames:
        """`pcm [B, F * 1920]` -> F frames. Encoded at once, heard one after the other, read back together.

        Sound is floats in -1..1 or whole numbers scaled by their type; what is no number is refused, and the streams stay where they are.
        Of a stream where `execute` bool `[B]` is false nothing is heard; it has to join before it goes on.
        """
        with self._owner:
            pcm = refuse_nonsense(as_samples(pcm))
            size = self._frame_size()
            if pcm.ndim != 2 or len(pcm) != self.batch or not pcm.shape[1] or pcm.shape[1] % size:
                raise InputError(
                    f"whole frames of {size} samples are heard, in {self.batch} streams; found {list(pcm.shape)}."
                )
            codes = self._codes(pcm[:, None])
            return self.read([self.hear(codes[:, :, f], execute) for f in range(codes.shape[2])])

    def listen_some(self, frames: Mapping[int, np.ndarray], fresh: Collection[int] = ()) -> HeardFrames:
        """One frame `[1920]` of some streams, sound as for `listen`, while the others stand still; those in `fresh` make their first step."""
        size = self._frame_size()
        pcm = np.zeros((self.batch, 1, size), np.float32)
        heard = np.zeros(self.batch, bool)
        for row, frame in frames.items():
            pcm[self._row(row), 0], heard[row] = as_frame(frame, size), True
        with self._owner:
            codes = self._codes(pcm, mx.array(heard))
            codes = mx.where(mx.array(heard)[:, None], codes[:, :, 0], self.lm.cfg.card)
            return self.read([self.hear(codes, heard | np.isin(np.arange(self.batch), list(fresh)))])

    def _codes(self, pcm: np.ndarray, execute: mx.array | None = None) -> mx.array:
        """`pcm [B, 1, F * 1920]` -> codes `[B, n_q, F]`, of the streams' next F frames."""
        old = self._encoder
        codes, self._encoder = self._encode_chunk(mx.array(pcm), old, execute)
        let_go(old)
        return codes

    def _frame_size(self) -> int:
        if self.mimi is None:
            raise InputError("this listener was made without a codec: it hears codes (hear), not sound.")
        return self.mimi.frame_size

    def _row(self, row: int) -> int:
        return arguments.whole("a row", row, 0, self.batch - 1)

    def warm_up(self) -> None:
        """Compile what a frame needs; the streams do not notice."""
        assert self.mimi is not None
        if self.own_clocks:
            self.listen_some({})
            return
        kept = self._gen.state, copy_containers(self._encoder)
        self.listen(np.zeros((self.batch, self.mimi.frame_size), np.float32))
        self._gen.state, self._encoder = kept

    def read(self, heard: list[Heard]) -> HeardFrames:
        """The values of some steps."""
        tokens = mx.stack([h.text for h in heard])
        pauses = [h.pauses for h in heard if h.pauses is not None]
        stacked = mx.stack(pauses) if pauses else mx.zeros((len(heard), self.batch, 0))
        mx.eval(tokens, stacked, self._gen.state)
        return HeardFrames(np.array(tokens), np.array(stacked))
