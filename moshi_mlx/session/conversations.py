"""Conversations in the rows of one batch: many clients talk to one model, each as if alone.

talks = Conversations(checkpoint, rows=4)
scheduler = Scheduler(lambda: Conversations(load(...), rows=4))     # or by clients, from any thread
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .. import arguments
from ..checkpoint.loader import Checkpoint
from ..config.reader import MOST
from ..engine import prefill, row_state
from ..engine.frame import FrameStep
from ..engine.kind import Outcome
from ..engine.prefill import Forced
from ..engine.row_state import Manner
from ..engine.rows import RowFrame, Rows
from ..engine.step import Guidance, Step, make_conditions
from ..engine.streams import Bounds, Inbox, WhenFull
from ..errors import InputError
from ..modules.conditioner import ConditionAttributes
from ..modules.repetition import RepetitionPenalty
from ..modules.sampling import Sampler
from ..text import Detokenizer
from . import hibiki, personaplex
from .hibiki import Ending
from .options import check_attributes, check_loaded, check_options, default_samplers
from .reply import Frame
from .session import default_attributes
from .voices import Voice

# What of a talk may wait: sound that came while the model was late, and replies that the client has not read.
INPUT_SECONDS, OUTPUT_FRAMES = 2.0, 256
# Positions of a prompt that are read between two steps of other rows.
PROMPT_PIECE = 32
PROMPTS_KEPT = 8


@dataclass(frozen=True)
class Talk:
    """How one conversation goes; what is None is as the checkpoint says.

    `attributes`: conditions, with guidance those of the null row too. `voice` and `text_prompt` are PersonaPlex's. `pad_bonus` is
    added to the logit of the padding token: above 0 the model speaks less. `tail`: frames a translation waits for its end.
    """

    seed: int = 0
    text_sampler: Sampler | None = None
    audio_sampler: Sampler | None = None
    attributes: Sequence[ConditionAttributes] | None = None
    voice: str | Path | Voice | None = None
    text_prompt: str | None = None
    cfg_coef: float | None = None
    pad_bonus: float = 0.0
    repetition_penalty: RepetitionPenalty | None = None
    tail: int = 375


class Conversations:
    """Rows of talk with one checkpoint. Belongs to the thread that made it; a `Kind` of the scheduler.

    `cfg_coef` other than 1 makes a batch with guidance, whose coefficient every talk may set for itself. `alike`: no talk sets how it is
    sampled and guided, and the batch may then be sampled in any way.
    """

    def __init__(
        self,
        loaded: Checkpoint,
        rows: int,
        *,
        text_sampler: Sampler | None = None,
        audio_sampler: Sampler | None = None,
        cfg_coef: float = 1.0,
        compile: bool = True,
        kv_bits: int | None = None,
        capacity: int | None = None,
        alike: bool = False,
    ):
        check_loaded(loaded)
        rows = arguments.whole("rows", rows, 1, MOST)
        check_options(
            text_sampler=text_sampler, audio_sampler=audio_sampler, cfg_coef=cfg_coef, compile=compile, kv_bits=kv_bits
        )
        if loaded.mimi is None:
            raise InputError("a conversation needs the checkpoint's codec.")
        self.checkpoint, self.rows, self.cfg_coef = loaded, rows, cfg_coef
        text_default, audio_default = default_samplers(loaded)
        text_sampler, audio_sampler = text_sampler or text_default, audio_sampler or audio_default
        # Talks that set one are the same graph as talks that do not.
        penalty = None if alike else RepetitionPenalty()
        # Prompts have lengths of their own: read without traces.
        self._step, self._plain = (
            Step(
                loaded.lm, text_sampler, audio_sampler, Guidance(cfg_coef), compile=traced, kv_bits=kv_bits, repetition_penalty=penalty
            )
            for traced in (compile, False)
        )  # fmt: skip
        attributes = default_attributes(loaded, rows, cfg_coef)
        conditions = make_conditions(loaded.lm, attributes) if attributes else None
        pause_at_end = not loaded.lm.cfg.is_hibiki_zero
        self._frame_step = FrameStep(self._step, loaded.mimi, conditions, compile, pause_at_end)
        self._rows = Rows(self._frame_step, rows, capacity, alike)
        if compile:
            self._rows.warm_up()
        self._talks: list[_Talk | None] = [None] * rows
        self._prompts: dict[tuple[str | None, str | None], Forced | None] = {}
        self.frame_size, self.sample_rate = loaded.mimi.frame_size, loaded.mimi.sample_rate
        self.bounds = Bounds(
            INPUT_SECONDS, OUTPUT_FRAMES, WhenFull.DROP, 0, self.sample_rate, self.frame_size, fold=_keep_text
        )

    @property
    def batch(self) -> Rows:
        """The rows below."""
        return self._rows

    # Coming and going -----------------------------------------------------------------------------------------------

    def join(self, row: int, options: Talk | None = None) -> Iterator[None]:
        """Begin a talk in `row`, in pieces of about one step: exhaust it before the row's first `step`."""
        talk = Talk() if options is None else arguments.kind("a conversation's wishes", options, Talk, "a Talk")
        self._check(talk)
        loaded = self.checkpoint
        prompt = self._prompt(talk)
        manner: Manner | None = Manner(
            talk.text_sampler, talk.audio_sampler, talk.cfg_coef, None, talk.pad_bonus, talk.repetition_penalty
        )
        if self._rows.alike:
            manner = None if manner == Manner() else manner
        attributes = talk.attributes
        if attributes is None:
            attributes = default_attributes(loaded, 1, self.cfg_coef)
        conditions = make_conditions(loaded.lm, attributes) if attributes else None
        begun = None
        if prompt is not None:
            own = row_state.init_state(self._plain, [talk.seed], 1, None if manner is None else [manner]).get("own")
            begun = yield from prefill.in_pieces(self._plain, prompt, [talk.seed], PROMPT_PIECE, own, self._rows.count)
            yield
        self._rows.join(row, talk.seed, manner, conditions, begun, 0 if prompt is None else prompt.length)
        if loaded.lm.cfg.is_hibiki_zero:
            yield
            self._rows.step({row: np.zeros(self.frame_size, np.float32)})
            self._rows.hear_anew(row)
        tokenizer = loaded.tokenizer
        self._talks[row] = _Talk(talk, Detokenizer(tokenizer, loaded.lm.cfg) if tokenizer else None)

    def _check(self, talk: Talk) -> None:
        coef = self.cfg_coef if talk.cfg_coef is None else talk.cfg_coef
        check_options(
            seed=arguments.whole("seed", talk.seed),
            text_sampler=talk.text_sampler,
            audio_sampler=talk.audio_sampler,
            cfg_coef=coef,
            voice=talk.voice,
            text_prompt=talk.text_prompt,
        )
        check_attributes(talk.attributes, 2 if self.cfg_coef != 1.0 else 1)
        arguments.number("pad_bonus", talk.pad_bonus)
        arguments.whole("tail", talk.tail, 0)

    def _prompt(self, talk: Talk) -> Forced | None:
        """What a talk begins with; that of the last few voices and roles is kept, since a voice may have to be read and encoded."""
        if isinstance(talk.voice, Voice):
            return personaplex.prompt_of(self.checkpoint, talk.voice, talk.text_prompt)
        key = (None if talk.voice is None else str(talk.voice), talk.text_prompt)
        if key not in self._prompts:
            prompt = personaplex.prompt_of(self.checkpoint, talk.voice, talk.text_prompt)
            while len(self._prompts) >= PROMPTS_KEPT:
                del self._prompts[next(iter(self._prompts))]
            self._prompts[key] = prompt
        return self._prompts[key]

    def leave(self, row: int) -> None:
        self._rows.leave(row)
        self._talks[row] = None

    # Stepping -------------------------------------------------------------------------------------------------------

    def ready(self, row: int, inbox: Inbox) -> bool:
        return inbox.has_frame or inbox.at_end

    def collect(self, row: int, inbox: Inbox) -> tuple[np.ndarray, bool] | None:
        """80 ms of sound, and whether it carries the mark of a source's end; None when there is nothing left to be said."""
        talk = self._talk(row)
        if inbox.has_frame:
            return inbox.frame(), False
        if not hibiki.is_translation(self.checkpoint):
            return None
        if talk.ending is None:
            talk.ending = Ending(talk.options.tail, without_last=self.checkpoint.lm.cfg.is_hibiki_zero)
            talk.rest = talk.ending.frames(self.frame_size)
        return next(talk.rest, None)

    def step(self, given: Mapping[int, tuple[np.ndarray, bool] | None]) -> dict[int, Outcome]:
        """The next 80 ms of some rows, as `collect` gives them -> their replies."""
        outcomes = {row: Outcome(done=True) for row, each in given.items() if each is None}
        heard = {row: each for row, each in given.items() if each is not None}
        if not heard:
            return outcomes
        marked = [row for row, (_, ended) in heard.items() if ended]
        if marked and not hibiki.is_translation(self.checkpoint):
            raise InputError("only translation models are told that their source is over.")
        replies = self._rows.step({row: pcm for row, (pcm, _) in heard.items()}, marked)
        return {**outcomes, **{row: self._outcome(row, reply) for row, reply in replies.items()}}

    def _outcome(self, row: int, reply: RowFrame) -> Outcome:
        talk, index = self._talk(row), self._rows.frames(row) - 1
        token = int(reply.tokens[0])
        text = talk.text.feed(token) if talk.text is not None else ""
        frame = Frame(reply.pcm, text, token, reply.tokens[1:], index, index * self.frame_size / self.sample_rate)
        if talk.ending is None or not talk.ending.see(token):
            return Outcome([frame])
        held = [frame]
        talk.ending.wants(token, held)
        return Outcome(held, done=True)

    def _talk(self, row: int) -> _Talk:
        talk = self._talks[arguments.whole("a row", row, 0, self.rows - 1)]
        if talk is None:
            raise InputError(f"there is no conversation in row {row}: join it first.")
        return talk


@dataclass
class _Talk:
    """What is known of a conversation beside the model's state."""

    options: Talk
    text: Detokenizer | None
    ending: Ending | None = None
    rest: Iterator[tuple[np.ndarray, bool]] = field(default_factory=lambda: iter(()))


def _keep_text(old: Frame, new: Frame) -> Frame:
    """Of a frame that is dropped, its words."""
    return replace(new, text=old.text + new.text)
