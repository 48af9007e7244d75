"""Audio in, text tokens and pause probabilities out, frame by frame: the codec's encoder and the language model (family.md 1).

The model's first step, which reads initial tokens only, is made at the start, so that every frame is heard in the step it
is given to and none is lost (family.md 0.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..audio.samples import as_samples, refuse_nonsense
from ..engine.generate import LmGen
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
    """`batch` streams heard in lockstep. Belongs to the thread that made it.

    `mimi` may be None for a caller that has codes.
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
    ):
        if lm.dep_q or not lm.n_q:
            raise InputError("this is not a speech-to-text model: it should listen to codebooks and generate none.")
        self._owner = Owner("this listener")
        self.lm, self.mimi, self.batch, self.prompt = lm, mimi, batch, prompt
        self._gen = LmGen(
            lm,
            text_sampler=sampler or Sampler(temp=0),
            batch_size=batch,
            on_text_logits_hook=prompt.constrain if prompt else None,
            on_text_hook=prompt.observe if prompt else None,
            compile=compile,
            seed=seed,
        )
        self._encode_chunk: Callable = mx.compile(self._encode) if compile else self._encode
        self.reset()

    def reset(self) -> None:
        """Begin anew, before the first step."""
        self._gen.reset()
        if self.mimi is not None:
            self._encoder = self.mimi.init_encoder(self.batch)
        if self.prompt is not None:
            self.prompt.reset()

    @property
    def heads(self) -> int:
        """Pause heads of the model."""
        return len(self.lm.extra_heads)

    def _encode(self, pcm: mx.array, state: dict) -> tuple[mx.array, dict]:
        assert self.mimi is not None
        return self.mimi.encode_chunk(pcm, state, self.lm.n_q)

    def start(self) -> Heard:
        """The first step: nothing is heard yet. Its token is that of model time 0."""
        return self.hear(mx.full((self.batch, self.lm.n_q), self.lm.cfg.card, mx.int32))

    def hear(self, codes: mx.array) -> Heard:
        """One frame of `codes [B, n_q]`."""
        text = self._gen.step(codes)[:, 0]
        pauses = [p[:, 0, :1] for p in self._gen.extra_heads()]
        return Heard(text, mx.concatenate(pauses, axis=-1) if pauses else None)

    def listen(self, pcm: np.ndarray) -> HeardFrames:
        """`pcm [B, F * 1920]` -> F frames. Encoded at once, heard one after the other, read back together.

        Sound is floats in -1..1 or whole numbers scaled by their type; what is no number is refused, and the streams stay where they are.
        """
        with self._owner:
            pcm = refuse_nonsense(as_samples(pcm))
            encoder, self._encoder = self._encoder, {}
            codes, self._encoder = self._encode_chunk(mx.array(pcm)[:, None], encoder)
            return self.read([self.hear(codes[:, :, f]) for f in range(codes.shape[2])])

    def warm_up(self) -> None:
        """Compile what a frame needs; the streams do not notice."""
        assert self.mimi is not None
        kept = self._gen.state, self._encoder
        self.listen(np.zeros((self.batch, self.mimi.frame_size), np.float32))
        self._gen.state, self._encoder = kept

    def read(self, heard: list[Heard]) -> HeardFrames:
        """The values of some steps."""
        tokens = mx.stack([h.text for h in heard])
        pauses = [h.pauses.astype(mx.float32) for h in heard if h.pauses is not None]
        stacked = mx.stack(pauses) if pauses else mx.zeros((len(heard), self.batch, 0))
        mx.eval(tokens, stacked, self._gen.state)
        return HeardFrames(np.array(tokens), np.array(stacked))
