"""From the wishes of a client to a talk of the model: defaults of the server, the sampling and seeds of this talk alone."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from ..checkpoint.loader import Checkpoint
from ..errors import MoshiError
from ..modules.repetition import RepetitionPenalty
from ..modules.sampling import Sampler
from ..session import hibiki
from ..session.conversations import Talk
from ..session.voices import voice_names
from .app import About
from .query import BadQuery, Wishes

DEMO_HINT = (
    "This is the small demo model: it greets, adds small numbers and repeats words. Ask it “what is three plus four”."
)


@dataclass(frozen=True)
class Defaults:
    """What a talk is like where its client leaves the choice. `seed` None: another one for every talk."""

    text_sampler: Sampler
    audio_sampler: Sampler
    seed: int | None = None
    voice: str | None = None
    role: str | None = None


class Talks:
    """Makes the talks of one checkpoint."""

    def __init__(self, loaded: Checkpoint, defaults: Defaults):
        self.loaded, self.defaults = loaded, defaults
        self.persona = loaded.config.is_personaplex
        self.voices = _voices(loaded) if self.persona else []
        self.translation = hibiki.is_translation(loaded)

    def make(self, wishes: Wishes) -> Talk:
        """Raises `BadQuery` for a voice that nobody has."""
        d = self.defaults
        text_sampler = _sampler(d.text_sampler, wishes.text_temperature, wishes.text_topk)
        return Talk(
            seed=self._seed(wishes),
            text_sampler=text_sampler,
            audio_sampler=_sampler(d.audio_sampler, wishes.audio_temperature, wishes.audio_topk),
            # Of the probability, not of the logit: nothing where the likeliest token is taken.
            pad_bonus=(wishes.pad_bias or 0.0) * text_sampler.temp,
            repetition_penalty=_penalty(wishes),
            voice=self._voice(wishes) if self.persona else None,
            text_prompt=(d.role if wishes.role is None else wishes.role) if self.persona else None,
        )

    def about(self, rows: int, recording: bool, demo: bool) -> About:
        """What the page shows of it."""
        files, d = self.loaded.files, self.defaults
        return About(
            model="the demo model" if demo else str(files.source),
            licence=files.licence or "",
            hint=DEMO_HINT if demo else "",
            rows=rows,
            recording=recording,
            persona=self.persona,
            translation=self.translation,
            voices=self.voices,
            sampling={
                "text_temperature": d.text_sampler.temp,
                "audio_temperature": d.audio_sampler.temp,
                "text_topk": d.text_sampler.top_k or 0,
                "audio_topk": d.audio_sampler.top_k or 0,
            },
        )

    def _seed(self, wishes: Wishes) -> int:
        """One number for both streams, whose draws never share their noise: that of the text where only one is named."""
        text, audio = wishes.text_seed, wishes.audio_seed
        if text is None and audio is None:
            return secrets.randbits(32) if self.defaults.seed is None else self.defaults.seed
        if text is None or audio is None or text == audio:
            return (audio if text is None else text) or 0
        return (text * 0x9E3779B1 + audio) % 2**32

    def _voice(self, wishes: Wishes) -> str | None:
        if wishes.voice is None:
            return self.defaults.voice
        if self.voices and wishes.voice not in self.voices:
            raise BadQuery(f"there is no voice {wishes.voice!r}; known voices: {', '.join(self.voices)}.")
        return wishes.voice


def _sampler(base: Sampler, temperature: float | None, top_k: int | None) -> Sampler:
    return replace(
        base,
        temp=base.temp if temperature is None else temperature,
        top_k=base.top_k if top_k is None else top_k,
    )


def _penalty(wishes: Wishes) -> RepetitionPenalty | None:
    if wishes.repetition_penalty is None or wishes.repetition_context is None:
        return None
    return RepetitionPenalty(wishes.repetition_penalty, wishes.repetition_context)


def _voices(loaded: Checkpoint) -> list[str]:
    place = loaded.files.place
    try:
        return [] if place is None else voice_names(place)
    except MoshiError:
        # A folder without the archive: a client may still know the name of a file in it.
        return []
