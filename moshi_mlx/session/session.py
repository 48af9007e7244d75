"""Full-duplex conversation, one 80 ms frame at a time: the way to embed Moshi.

    session = Session.load(model="path/to/folder")
    frame = session.step(pcm)          # float32 [1920] in, Frame(pcm, text, ...) out

A session belongs to the thread that made it. `state` is a plain tree of arrays: keep it to fork the conversation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import arguments
from ..audio import samples
from ..checkpoint import loader
from ..checkpoint.files import Overrides
from ..checkpoint.loader import Checkpoint
from ..engine import prefill
from ..engine.frame import FrameStep
from ..engine.state import copy_containers
from ..engine.state_check import check_frame_state
from ..engine.step import Guidance, Step, make_conditions
from ..errors import InputError
from ..machine.owner import Owner
from ..modules.conditioner import ConditionAttributes
from ..modules.repetition import RepetitionPenalty
from ..modules.sampling import Sampler
from ..text import Detokenizer, check_pending, pack_pending
from . import options, personaplex
from .reply import Frame
from .thread import SessionThread
from .voices import Voice


class Session:
    """One conversation, or `batch` of them in lockstep, with a loaded checkpoint."""

    def __init__(
        self,
        loaded: Checkpoint,
        *,
        batch: int = 1,
        seed: int | Sequence[int] = 0,
        text_sampler: Sampler | None = None,
        audio_sampler: Sampler | None = None,
        cfg_coef: float = 1.0,
        attributes: Sequence[ConditionAttributes] | None = None,
        voice: str | Path | Voice | None = None,
        text_prompt: str | None = None,
        compile: bool = True,
        kv_bits: int | None = None,
        repetition_penalty: RepetitionPenalty | None = None,
    ):
        """Everything that stepping needs is compiled here (a second or so), so that no frame of a conversation waits for it.

        `voice` (a name such as NATF2, a file, or a `Voice`) and `text_prompt` are for PersonaPlex: who speaks, and as what.
        `kv_bits` (8 or 4) stores keys and values packed: less memory and traffic in long conversations, at a small loss.
        `repetition_penalty` makes words less likely that were said lately.
        """
        options.check_options(
            batch=batch,
            seed=seed,
            text_sampler=text_sampler,
            audio_sampler=audio_sampler,
            cfg_coef=cfg_coef,
            attributes=attributes,
            voice=voice,
            text_prompt=text_prompt,
            compile=compile,
            kv_bits=kv_bits,
            repetition_penalty=repetition_penalty,
        )
        options.check_loaded(loaded)
        if loaded.mimi is None:
            raise InputError("a session needs the checkpoint's codec.")
        self._owner = Owner("this session")
        self.checkpoint, self.batch = loaded, int(batch)
        self.seeds = arguments.seeds(seed, self.batch)
        self.lm, self.mimi = loaded.lm, loaded.mimi
        text_default, audio_default = options.default_samplers(loaded)
        text_sampler, audio_sampler = text_sampler or text_default, audio_sampler or audio_default
        self._step = Step(
            self.lm, text_sampler, audio_sampler, Guidance(cfg_coef), compile=compile, kv_bits=kv_bits,
            repetition_penalty=repetition_penalty,
        )  # fmt: skip
        if attributes is None:
            attributes = default_attributes(loaded, batch, cfg_coef)
        conditions = make_conditions(self.lm, attributes) if attributes else None
        pause_at_end = not self.lm.cfg.is_hibiki_zero
        self._frame_step = FrameStep(self._step, self.mimi, conditions, compile, pause_at_end)
        self._prompt = personaplex.prompt_of(loaded, voice, text_prompt)
        self.reset()
        if compile:
            self._frame_step.warm_up(batch, ends=self.lm.cfg.model_type == "hibiki")

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        hf_repo: str | None = None,
        *,
        quantized: int | None = None,
        dtype: mx.Dtype | None = None,
        context: int | None = None,
        lora: str | Path | None = None,
        lora_scale: float | None = None,
        **session_options: Any,
    ) -> Session:
        """Load a folder or short name `model`, or a Hub repository, and start a session; moshiko without either.

        `quantized` (4 or 8) chooses among the precisions of a short name; `context` bounds the attention window, in frames;
        `lora` is an adapter's file or folder. Other options are those of the constructor.
        """
        options.check_options(**session_options)
        if lora is not None:
            arguments.kind("lora", lora, (str, Path), "a file or a folder")
        if lora_scale is not None:
            arguments.number("lora_scale", lora_scale)
        overrides = Overrides(lora=None if lora is None else str(lora), lora_scale=lora_scale)
        loaded = loader.load(
            model,
            hf_repo,
            quantized=quantized,
            dtype=dtype,
            overrides=overrides,
            context=context,
            batch=session_options.get("batch", 1),
        )
        return cls(loaded, **session_options)

    @classmethod
    def spawn(
        cls,
        model: str | Path | None = None,
        hf_repo: str | None = None,
        *,
        on_frame: Callable[[Frame], Any],
        on_error: Callable[[BaseException], Any] | None = None,
        **load_options: Any,
    ) -> SessionThread[Session]:
        """Load and run a session on a thread of its own (see `session_thread`); options are those of `load`.

        Returns when it is loaded. Feed it sound with `feed`; `on_frame` gets every reply on the session's thread.
        """
        return SessionThread(lambda: cls.load(model, hf_repo, **load_options), on_frame, on_error)

    @property
    def frame_step(self) -> FrameStep:
        """The frame as a pure function of (state, audio)."""
        return self._frame_step

    @property
    def frame_size(self) -> int:
        """Samples per frame (1920)."""
        return self.mimi.frame_size

    @property
    def sample_rate(self) -> int:
        return self.mimi.sample_rate

    @property
    def state(self) -> dict:
        """The conversation as a plain tree of arrays: keep it to come back, give it to another session to fork.

        It is a value: later steps leave it alone (holding one costs one copy of the rings at the next step).
        """
        with self._owner:
            return {**copy_containers(self._state), "text": pack_pending([t.pending for t in self._text])}

    @state.setter
    def state(self, state: dict) -> None:
        """Continue from there. What is no state of this model with these options is an `InputError`, and nothing changes."""
        with self._owner:
            whole, unfinished = self._checked(state)
            self._state = whole
            self._steps = int(whole["lm"]["offset"].item())
            self._start_text()
            for detokenizer, pending in zip(self._text, unfinished, strict=False):
                detokenizer.pending = pending

    def _checked(self, state: dict) -> tuple[dict, list[bytes]]:
        """A state from outside, and its unfinished characters."""
        parts = dict(arguments.kind("the state", state, dict, "a dict"))
        pending = parts.pop("text", None)
        whole = check_frame_state(self._frame_step, parts, self.batch)
        if (steps := int(whole["lm"]["offset"].item())) < self._first:
            raise InputError(
                f"lm.offset should be at least {self._first} in a conversation that has begun, found {steps}."
            )
        return whole, [] if pending is None else check_pending(pending, self.batch)

    def reset(self, seed: int | None = None) -> None:
        """Begin a new conversation; `seed` replaces the seed of every row (row b gets seed + b)."""
        with self._owner:
            if seed is not None:
                self.seeds = arguments.seeds(arguments.whole("seed", seed), self.batch)
            self._state = self._frame_step.init_state(self.seeds)
            if self._prompt is not None:
                self._state["lm"] = prefill.run(self._step, self._prompt, self.seeds)
            else:
                # The model's first input holds no audio: run it now, and every later step uses the frame it is given.
                self._state = self._frame_step.first(self._state)
            mx.eval(self._state)
            self._first = self._steps = 1 if self._prompt is None else self._prompt.length
            self._start_text()

    def _start_text(self) -> None:
        tokenizer, cfg = self.checkpoint.tokenizer, self.lm.cfg
        self._text = [Detokenizer(tokenizer, cfg) for _ in range(self.batch)] if tokenizer else []

    @property
    def frames(self) -> int:
        """Frames stepped so far."""
        return self._steps - self._first

    def step(self, pcm: np.ndarray, ended: bool | Sequence[bool] = False) -> Any:
        """The user's next 80 ms `[1920]` -> `Frame`; `[batch, 1920]` -> a list of `batch` frames.

        Sound is floats in -1..1 or whole numbers scaled by their type (see `audio.samples`); what is no number is refused, and the
        conversation stays where it is.
        `ended` (for each row) tells a translation model that its source is over; this frame's audio is then not heard.
        """
        with self._owner:
            pcm = samples.as_samples(pcm)
            single = pcm.ndim == 1
            rows = pcm[None] if single else pcm
            if rows.shape != (self.batch, self.frame_size):
                raise InputError(
                    f"a step takes {self.frame_size} samples for each of {self.batch} conversations, found {list(pcm.shape)}."
                )
            samples.refuse_nonsense(rows)
            marks = self._marks(ended)
            old = self._state
            self._state, out, tokens = self._frame_step(old, mx.array(rows), self._steps, marks)
            # At once: whatever interrupts this, the conversation is before the frame or after it.
            self._steps += 1
            self._frame_step.evaluate(old, self._state, out, tokens)
            index = self.frames - 1
            sound, numbers = np.array(out), np.array(tokens)
            frames = [self._frame(b, sound[b], numbers[b], index) for b in range(self.batch)]
        return frames[0] if single else frames

    def _marks(self, ended: bool | Sequence[bool]) -> mx.array | None:
        """Which rows end with this frame, None when none does."""
        whole = isinstance(ended, (bool, np.bool_))
        rows = arguments.mask("ended", [ended] * self.batch if whole else ended, self.batch, "conversations")
        if not rows.any():
            return None
        if self.lm.cfg.model_type != "hibiki":
            raise InputError("only translation models are told that their source is over.")
        return mx.array(rows)

    def _frame(self, row: int, pcm: np.ndarray, tokens: np.ndarray, index: int) -> Frame:
        token = int(tokens[0])
        text = self._text[row].feed(token) if self._text else ""
        return Frame(pcm, text, token, tokens[1:], index, index / self.mimi.frame_rate)


def default_attributes(loaded: Checkpoint, batch: int, cfg_coef: float) -> list[ConditionAttributes]:
    """Conditions a model expects when the caller names none: Hibiki's best quality, its worst as the null (family.md 3)."""
    conditioners = loaded.lm.cfg.conditioners
    if "description" not in conditioners:
        return []
    rows = [ConditionAttributes(text={"description": "very_good"})] * batch
    if cfg_coef != 1.0:
        rows = rows + [ConditionAttributes(text={"description": "very_bad"})] * batch
    return rows
