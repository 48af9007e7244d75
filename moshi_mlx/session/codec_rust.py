"""`--codec rust`: Kyutai's Rust codec on the CPU (package rustymimi) in place of the MLX one, behind the session's interface.

It leaves the whole GPU to the language model. Its state lives inside the library: conversations cannot be forked or saved.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import arguments
from ..audio import samples
from ..checkpoint.loader import Checkpoint
from ..config.parts import MimiConfig
from ..config.presets import MIMI_V0_1
from ..engine.generate import LmGen
from ..engine.step import make_conditions
from ..errors import InputError
from ..machine.owner import Owner
from ..modules.conditioner import ConditionAttributes
from ..modules.sampling import Sampler
from ..text import Detokenizer
from . import options
from .session import Frame, default_attributes

# The library's table of positions, at 25 a second: two hours. Its memory is 512 bytes a position.
POSITIONS = 180_000
POSITIONS_PER_FRAME = 2
# What a codec must have heard to sound as if it had heard everything: its attention window, 10 s.
WINDOW_FRAMES = 125


class RustMimi:
    """One stream through rustymimi, of any length: every frame is encoded, then perhaps one decoded.

    The library counts positions in a table of fixed size, stops at its end, and has no way back to the beginning (its `reset`
    forgets the sound, not the position). So a new instance listens to the last ten seconds before that and takes over; making
    it holds Python up for a fifth of a second.
    """

    def __init__(self, path: str | Path, codebooks: int, positions: int = POSITIONS):
        if importlib.util.find_spec("rustymimi") is None:
            raise InputError(
                "--codec rust needs the package rustymimi, which is not installed. Install it with "
                "pip install rustymimi, or use --codec mlx."
            )
        self._last = positions // POSITIONS_PER_FRAME
        if self._last <= WINDOW_FRAMES:
            raise InputError(f"the codec needs a table of more than {WINDOW_FRAMES * POSITIONS_PER_FRAME} positions.")
        self._path, self._codebooks = str(path), codebooks
        self.reset()

    def reset(self) -> None:
        """The beginning of a stream."""
        self._serving, self._next = self._make(), None
        self._frames = 0  # heard by the serving instance

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """The next `pcm [1920]` -> codes int32 `[codebooks]`."""
        self._relay()
        x = np.ascontiguousarray(pcm, np.float32)[None, None]
        if self._next is not None:
            self._next.encode_step(x)
        return self._serving.encode_step(x)[0, :, 0].astype(np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """The next codes `[n]`, n up to `codebooks` -> `pcm [1920]`."""
        x = np.ascontiguousarray(codes, np.uint32)[None, :, None]
        if self._next is not None:
            self._next.decode_step(x)
        return self._serving.decode_step(x)[0, 0]

    def _make(self) -> Any:
        import rustymimi

        return rustymimi.Tokenizer(
            self._path, num_codebooks=self._codebooks, max_seq_len=self._last * POSITIONS_PER_FRAME
        )

    def _relay(self) -> None:
        if self._frames == self._last:
            self._serving, self._next = self._next, None
            self._frames = WINDOW_FRAMES
        elif self._frames == self._last - WINDOW_FRAMES:
            self._next = self._make()
        self._frames += 1


class RustSession:
    """A conversation whose sound is coded on the CPU. Steps like `Session`; `state` is the language model's part alone.

    Belongs to the thread that made it.
    """

    batch = 1

    def __init__(
        self,
        loaded: Checkpoint,
        *,
        seed: int = 0,
        text_sampler: Sampler | None = None,
        audio_sampler: Sampler | None = None,
        cfg_coef: float = 1.0,
        attributes: list[ConditionAttributes] | None = None,
        compile: bool = True,
        kv_bits: int | None = None,
        positions: int = POSITIONS,
    ):
        options.check_options(
            seed=seed,
            text_sampler=text_sampler,
            audio_sampler=audio_sampler,
            cfg_coef=cfg_coef,
            attributes=attributes,
            compile=compile,
            kv_bits=kv_bits,
        )
        options.check_loaded(loaded)
        files, cfg = loaded.files, loaded.lm.cfg
        if files.mimi is None:
            raise InputError(
                "a session needs the checkpoint's codec, and --codec rust a file of its own for it: name it with --mimi-weights."
            )
        mimi = MimiConfig.from_dict(MIMI_V0_1)
        if files.mimi_config is not None or files.config.codec not in (None, mimi):
            raise InputError(
                f"--codec rust only knows the published codec, and {files.source} has one of its own. Use --codec mlx."
            )
        self._owner = Owner("this session")
        self.checkpoint, self.lm = loaded, loaded.lm
        self.frame_size, self.sample_rate, self._frame_rate = mimi.frame_size, mimi.sample_rate, mimi.frame_rate
        self._given = cfg.n_q - cfg.dep_q
        self._codec = RustMimi(files.mimi, max(cfg.dep_q, self._given), positions)
        if attributes is None:
            attributes = default_attributes(loaded, 1, cfg_coef)
        text_default, audio_default = options.default_samplers(loaded)
        self._options: dict[str, Any] = {
            "text_sampler": text_sampler or text_default,
            "audio_sampler": audio_sampler or audio_default,
            "batch_size": 1,
            "cfg_coef": cfg_coef,
            "conditions": make_conditions(self.lm, attributes) if attributes else None,
            "compile": compile,
            "kv_bits": kv_bits,
        }
        self._gen = LmGen(self.lm, seed=seed, **self._options)
        if compile:
            self._gen.warm_up()
        self.reset()

    @property
    def state(self) -> dict:
        with self._owner:
            return {"lm": self._gen.state}

    @state.setter
    def state(self, state: dict) -> None:
        """Continue the model's part; the codec starts a new stream. What is no state of this model is an `InputError`."""
        with self._owner:
            if set(arguments.kind("the state", state, dict, "a dict")) != {"lm"}:
                raise InputError(
                    f"the state of a session with the Rust codec has one part, lm; found {', '.join(map(str, state))}."
                )
            self._gen.continue_from(state["lm"], decoded=True)
            self._begin_stream()

    @property
    def frames(self) -> int:
        """Frames stepped so far."""
        return self._gen.steps - 1

    def reset(self, seed: int | None = None) -> None:
        """Begin a new conversation."""
        with self._owner:
            if seed is not None:
                self._gen.seeds = [arguments.whole("seed", seed)]
            self._gen.reset()
            # The model's first input holds no audio.
            self._gen.step(np.full((1, self._given), self.lm.cfg.card, np.int32))
            mx.eval(self._gen.state)
            self._begin_stream()

    def _begin_stream(self) -> None:
        self._codec.reset()
        tokenizer = self.checkpoint.tokenizer
        self._text = Detokenizer(tokenizer, self.lm.cfg) if tokenizer else None

    def step(self, pcm: np.ndarray) -> Frame:
        """The user's next 80 ms, float `[1920]` -> `Frame`."""
        with self._owner:
            pcm = samples.as_frame(pcm, self.frame_size)
            self._gen.step(self._codec.encode(pcm)[None, : self._given])
            tokens = np.array(self._gen.frame)[0]
            sound = self._codec.decode(tokens[1:]) if self._gen.has_frame else np.zeros(self.frame_size, np.float32)
            text = self._text.feed(int(tokens[0])) if self._text else ""
            index = self.frames - 1
            return Frame(sound, text, int(tokens[0]), tokens[1:], index, index / self._frame_rate)
