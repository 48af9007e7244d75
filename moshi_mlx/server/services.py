"""What a server offers: talk, speech to text, text to speech; each is a model in rows under a name, and what makes the options of a stream.

The scheduler of a service gives its streams (`engine.scheduler.Scheduler.open`), the service what they are opened with.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..engine.scheduler import Scheduler
from ..speech_to_text.rows import Hear
from ..text_to_speech.rows import Speak
from .query import Wishes

TALK, STT, TTS = "talk", "stt", "tts"


@dataclass(frozen=True)
class Talking:
    """Dialogue, or translation. `name` is what clients know the model by; items are `session.reply.Frame`s.

    `make(wishes)` gives the options of a talk; raises `BadQuery` for what cannot be had. `persona`: it has roles and voices.
    """

    name: str
    scheduler: Scheduler
    make: Callable[[Wishes], Any]
    translation: bool = False
    persona: bool = False
    kind: str = field(default=TALK, init=False)


@dataclass(frozen=True)
class Hearing:
    """Speech to text; items are `HeardFrame`s and `Marker`s. `delay`: seconds by which the text lags behind the sound.

    `heads`: pause heads of the model, 0 where it cannot tell pauses itself (then see `pauses.Pauses`).
    """

    name: str
    scheduler: Scheduler
    heads: int = 0
    delay: float = 0.5
    kind: str = field(default=STT, init=False)

    def make(self, *, turns: bool = False, flush: bool = True) -> Hear:
        """Options of a stream. `turns`: report ends of turns, where the model has pause heads; `flush`: fetch their last words at once."""
        return Hear(turns=turns and self.heads > 0, flush=flush)


@dataclass(frozen=True)
class Speaking:
    """Text to speech; items are `Spoken`. `voices` are files by their names, `default` the name of the one that is spoken with else.

    `usual`: everything else of an utterance. `clones`: the model goes on in the voice of any clip.
    """

    name: str
    scheduler: Scheduler
    voices: dict[str, Path] = field(default_factory=dict)
    default: str | None = None
    usual: Speak = field(default_factory=Speak)
    clones: bool = False
    kind: str = field(default=TTS, init=False)

    def knows(self, voice: str | None) -> bool:
        return voice is not None and voice in self.voices

    def make(self, voice: str | None = None, *, seed: int | None = None) -> Speak:
        """Options of a stream: `voice` by its name, the default one where it is unknown or None; without a `seed` another each time."""
        chosen = voice if self.knows(voice) else self.default
        voices = self.usual.voices if chosen is None else (self.voices[chosen],)
        return replace(self.usual, voices=voices, seed=secrets.randbits(32) if seed is None else seed)


Service = Talking | Hearing | Speaking


@dataclass(frozen=True)
class Services:
    """The services of one server, each at most once; iterating gives those there are, in the order in which they are served."""

    talk: Talking | None = None
    stt: Hearing | None = None
    tts: Speaking | None = None

    def __iter__(self) -> Iterator[Service]:
        return (s for s in (self.talk, self.stt, self.tts) if s is not None)

    @property
    def running(self) -> bool:
        """Whether every one of them answers."""
        return all(s.scheduler.running for s in self)

    def health(self) -> dict[str, Any]:
        """Rows of each kind and together, or which model has stopped."""
        kinds: dict[str, dict[str, Any]] = {}
        rows = in_use = 0
        for s in self:
            of = s.scheduler
            kinds[s.kind] = {"model": s.name, "rows": of.rows, "rows_in_use": of.live, "waiting": of.waiting}
            rows, in_use = rows + of.rows, in_use + of.live
        stopped = [s.name for s in self if not s.scheduler.running]
        status = f"the model has stopped: {', '.join(stopped)}" if stopped else "ok"
        return {"status": status, "rows": rows, "rows_in_use": in_use, "kinds": kinds}
