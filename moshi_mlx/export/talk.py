"""The functions of a model that hears and, unless it only writes down what it hears, talks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..checkpoint.loader import Checkpoint
from ..defaults import TRANSLATION_SECONDS
from ..engine import prefill
from ..engine.prefill import Forced
from ..engine.step import Conditions
from ..errors import InputError
from ..modules.conditioner import ConditionAttributes
from ..session import hibiki, personaplex
from ..session.session import Session, default_attributes
from ..session.voices import Voice
from ..speech_to_text.delays import delays_of
from . import text
from .codec import audio_facts
from .function import CONDITIONS, SAMPLING, STATE, Arrays, Function, named, tree_of
from .plan import Plan, Rings, Start
from .sampler import InputSampler
from .weights import FileWeights


class TalkFunctions:
    """Traces the one frame that a `Session` steps, with everything that it reads as an input."""

    def __init__(
        self,
        loaded: Checkpoint,
        *,
        kv_bits: int | None = None,
        conditions: Mapping[str, str] | None = None,
        capacities: Sequence[int] | None = None,
    ):
        lm, defaults = loaded.lm, loaded.config.generation
        lm.prepare()
        self.loaded = loaded
        vocabularies = lm.cfg.text_out_vocab_size, lm.cfg.card
        self.text_sampler = InputSampler(vocabularies[0], defaults.temp_text, defaults.top_k_text)
        self.audio_sampler = InputSampler(vocabularies[1], defaults.temp, defaults.top_k)
        attributes = default_attributes(loaded, 1, 1.0)
        if conditions:
            known = attributes[0].text if attributes else {}
            attributes = [ConditionAttributes(text={**known, **conditions})]
        session = Session(
            loaded, text_sampler=self.text_sampler, audio_sampler=self.audio_sampler, attributes=attributes,
            text_prompt="" if loaded.config.is_personaplex else None, compile=False, kv_bits=kv_bits,
        )  # fmt: skip
        self.frame, self.step = session.frame_step, session.frame_step.step
        assert loaded.mimi is not None
        self.weights = FileWeights({"lm": lm.step_weights(), "mimi": loaded.mimi.step_weights()})
        self.capacities = self._capacities(capacities)
        self._like = self.frame.init_state([0], self.capacities[0])

    def _capacities(self, asked: Sequence[int] | None) -> list[int]:
        window = self.step.lm.transformer.capacity()
        if window is None:
            raise InputError("this model's attention window has no bound, and a graph needs one: give --context.")
        if asked is None:
            return self.step.capacities(1)
        lowest = self.step.clock.columns
        if any(not lowest <= c <= window for c in asked):
            raise InputError(f"sizes of the rings should be {lowest} to {window} (the window), found {sorted(asked)}.")
        return sorted({*asked, window})

    # What is traced -----------------------------------------------------------------------------------------------

    @contextmanager
    def _placed(self, arrays: Arrays) -> Iterator[None]:
        """The model reads its weights, conditions and sampling from `arrays`."""
        frame, samplers = self.frame, (self.text_sampler, self.audio_sampler)
        conditions, inputs = frame.conditions, [s.inputs for s in samplers]
        try:
            with self.weights.replaced(arrays):
                frame.conditions = self._conditions(arrays)
                for sampler, ending in zip(samplers, ("_text", ""), strict=True):
                    sampler.inputs = {name: arrays[f"{SAMPLING}{name}{ending}"] for name in sampler.inputs}
                yield
        finally:
            frame.conditions = conditions
            for sampler, own in zip(samplers, inputs, strict=True):
                sampler.inputs = own

    def _conditions(self, arrays: Arrays) -> Conditions | None:
        own = self.frame.conditions
        if own is None:
            return None
        cross = None if own.cross is None else [arrays[f"{CONDITIONS}cross.{i}"] for i in range(len(own.cross))]
        return Conditions(arrays.get(f"{CONDITIONS}total"), cross)

    def _state(self, arrays: Arrays) -> Any:
        return tree_of(STATE, arrays, self._like)

    def _frame(self, arrays: Arrays) -> tuple[Arrays, Any]:
        with self._placed(arrays):
            # Any number of steps at which there is a reply; the rings of a trace have their size.
            steps = self.step.clock.max_delay
            state, pcm, tokens = self.frame(self._state(arrays), arrays["pcm"], steps, arrays.get("ended"))
        return {"pcm": pcm, "tokens": tokens}, state

    def _hear(self, arrays: Arrays) -> tuple[Arrays, Any]:
        with self._placed(arrays):
            state, tokens, pauses = self.frame.hear(self._state(arrays), arrays["pcm"], arrays.get("ended"))
        return {"tokens": tokens, **({} if pauses is None else {"pauses": pauses})}, state

    def _first(self, arrays: Arrays) -> tuple[Arrays, Any]:
        with self._placed(arrays):
            return {}, self.frame.first(self._state(arrays))

    def _after(self, prompt: Forced) -> Any:
        def last(arrays: Arrays) -> tuple[Arrays, Any]:
            with self._placed(arrays):
                state = self._state(arrays)
                return {}, {**state, "lm": prefill.last_step(self.step, prompt, state["lm"])}

        return last

    def functions(self, prompt: Forced | None) -> list[Function]:
        pcm = {"pcm": mx.zeros((1, self.frame.mimi.frame_size))}
        kinds: list[Arrays] = [pcm]
        if hibiki.is_translation(self.loaded):
            kinds.append({**pcm, "ended": mx.array([True])})
        found = []
        if self.step.generated:
            found.append(Function("frame", self._frame, ["pcm", "tokens"], kinds))
        if not self.step.generated or self.step.clock.max_delay > 1:
            heads = ["pauses"] if self.step.lm.extra_heads else []
            found.append(Function("hear", self._hear, ["tokens", *heads], kinds))
        first = self._first if prompt is None else self._after(prompt)
        # A prompt's last step is the same for all of them: what is imposed there is silence, whoever speaks.
        return [*found, Function("first", first, [], [{}], begins=True)]

    # What is written ----------------------------------------------------------------------------------------------

    def plan(self, prompts: Mapping[str, Forced]) -> Plan:
        """Everything for a folder; `prompts` by name, for a model that takes some."""
        endings = [prompt.tokens[:, prompt.length - 1 :] for prompt in prompts.values()]
        if any(not np.array_equal(ending, endings[0]) for ending in endings):
            raise InputError("the prompts of these voices end differently; export a folder for each.")
        states = [named(STATE, self.frame.init_state([0], c)) for c in self.capacities]
        rings = self._rings(states)
        starts = [self._start(name, prompt, rings) for name, prompt in prompts.items()] or [
            Start("", rings.cut(states[0], 1), self.capacities[0])
        ]
        conditions = self.frame.conditions.tree() if self.frame.conditions is not None else {}
        present = {name: value for name, value in conditions.items() if value is not None}
        sampling = {
            f"{SAMPLING}{name}{ending}": array
            for sampler, ending in ((self.text_sampler, "_text"), (self.audio_sampler, ""))
            for name, array in sampler.inputs.items()
        }
        return Plan(
            functions=self.functions(next(iter(prompts.values()), None)),
            fixed={**self.weights.arrays(), **named(CONDITIONS, present)},
            states=states,
            starts=starts,
            facts=self._facts(),
            sampling=sampling,
            rings=rings,
        )

    def _rings(self, states: Sequence[Arrays]) -> Rings:
        """What has another shape when the rings have another size."""
        other = named(STATE, self.frame.init_state([0], self.capacities[0] + 1))
        names = [name for name, array in states[0].items() if array.shape != other[name].shape]
        axes = {np.flatnonzero(np.not_equal(states[0][n].shape, other[n].shape)).tolist()[0] for n in names}
        (axis,) = axes
        return Rings(names, axis, self.capacities)

    def _start(self, name: str, prompt: Forced, rings: Rings) -> Start:
        """The state before the last step of a prompt, which draws."""
        lm = prefill.read(self.step, prompt, [0])
        state = named(STATE, {**self.frame.init_state([0]), "lm": lm})
        read = int(lm["offset"].item())
        capacity = state[rings.names[0]].shape[rings.axis]
        if capacity not in rings.capacities:
            larger = [c for c in rings.capacities if c > read]
            capacity = larger[0] if larger else rings.capacities[-1]
        cut = rings.cut(state, max(1, min(read, capacity)))
        mx.eval(cut)
        return Start(name, cut, capacity)

    def _facts(self) -> dict[str, Any]:
        loaded, cfg, mimi = self.loaded, self.loaded.lm.cfg, self.frame.mimi
        facts = {
            "audio": audio_facts(mimi),
            "tokens": {
                "codebooks": self.step.generated,
                "delays": list(cfg.delays),
                "card": cfg.card,
                "text_card": cfg.text_card,
            },
            "sampling": {
                "temp": self.audio_sampler.temp,
                "top_k": self.audio_sampler.top_k,
                "temp_text": self.text_sampler.temp,
                "top_k_text": self.text_sampler.top_k,
                "limits": {
                    "top_k": {"most": self.audio_sampler.limit, "all": cfg.card},
                    "top_k_text": {"most": self.text_sampler.limit, "all": cfg.text_out_vocab_size},
                },
            },
            "text": None if loaded.tokenizer is None else text.table(loaded.tokenizer, cfg),
        }
        if hibiki.is_translation(loaded):
            zero = cfg.is_hibiki_zero
            facts["translation"] = {
                "end": hibiki.EOS, "pad": hibiki.PAD, "lead_in": zero, "without_last": zero, "tail_seconds": TRANSLATION_SECONDS,
            }  # fmt: skip
        if not self.step.generated:
            delays = delays_of(loaded.config)
            facts["transcript"] = {
                "delay_seconds": 0.0 if delays is None else delays.audio_delay_seconds,
                "silence_prefix_seconds": 0.0 if delays is None else delays.audio_silence_prefix_seconds,
                "heads": len(self.step.lm.extra_heads),
            }
        return facts


def prompts_of(loaded: Checkpoint, voices: Sequence[str | Path | Voice], text_prompt: str | None) -> dict[str, Forced]:
    """The prompts that conversations can begin with, by the voice's name; none for models that take none."""
    found = {}
    asked: Sequence[str | Path | Voice | None] = voices or [None]
    for voice in asked:
        prompt = personaplex.prompt_of(loaded, voice, text_prompt)
        if prompt is not None:
            found[voice.name if isinstance(voice, Voice) else Path(voice or "").stem] = prompt
    if voices and loaded.config.is_personaplex and len(found) < len(voices):
        raise InputError("two voices have the same name; give their files different ones.")
    return found
