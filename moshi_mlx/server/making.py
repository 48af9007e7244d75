"""From a loaded checkpoint to a service: its rows on the models' thread, compiled and measured before anybody is let in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint.files import Files
from ..checkpoint.loader import Checkpoint
from ..checkpoint.published import DEFAULT_NAME
from ..defaults import TTS_GUIDANCE
from ..engine.kind import Kind
from ..engine.model_thread import ModelThread
from ..engine.scheduler import Scheduler
from ..engine.streams import Inbox, Say
from ..errors import InputError
from ..live.warmup import StepTimes
from ..machine import memory
from ..machine.serving import Cost
from ..models.traffic import frame_traffic
from ..modules.sampling import Sampler
from ..session.conversations import Conversations
from ..speech_to_text.delays import delays_of
from ..speech_to_text.rows import Hear, Transcriptions
from ..text_to_speech import voices as voice_files
from ..text_to_speech.rows import Speak, Utterances
from ..text_to_speech.tts_model import TTSModel
from . import recorded
from .query import Wishes
from .services import Hearing, Speaking, Talking
from .talks import Talks
from .warmup import warm_up

# A model that is warmed up reads this aloud.
WORDS = "one two three four five six seven eight nine ten " * 8


@dataclass(frozen=True)
class Running:
    """How all models of a server run. `stack` closes what was opened; `compile` and `kv_bits` as for every command."""

    thread: ModelThread
    stack: contextlib.ExitStack
    compile: bool = True
    kv_bits: int | None = None

    def scheduler(self, make: Callable[[], Kind], name: str) -> Scheduler:
        return self.stack.enter_context(Scheduler(make, name=name, thread=self.thread))


def cost_of(loaded: Checkpoint, kv_bits: int | None = None) -> Cost:
    """What the rows of a checkpoint cost."""
    lm, mimi = loaded.lm, loaded.mimi
    row = memory.ring_bytes(lm.cfg.transformer, 1, lm.dtype)
    if kv_bits is not None:
        # With a scale and an offset for every 32 values.
        row = row * (kv_bits + 1) // (8 * lm.dtype.size)
    weights = memory.module_bytes(lm)
    if mimi is not None:
        weights += memory.module_bytes(mimi)
        row += 2 * memory.ring_bytes(mimi.cfg.transformer, 1, lm.dtype)
    return Cost(weights, frame_traffic(lm, mimi).total, row)


def shown_name(name: str | None) -> str:
    """A model as clients know it: without folders of this machine."""
    if name is None:
        return DEFAULT_NAME
    return Path(name).resolve().name if Path(name).exists() else name.removeprefix("hf://")


def talking(
    name: str,
    talks: Talks,
    rows: int,
    running: Running,
    cfg_coef: float = 1.0,
    record: Path | None = None,
    wrap: Callable[[Kind], Kind] = lambda kind: kind,
) -> tuple[Talking, StepTimes]:
    """Dialogue with the models and defaults of `talks`. `record` is the folder of recordings; `wrap` puts something around the model."""
    made: list[StepTimes] = []
    loaded, usual = talks.loaded, talks.defaults

    def make() -> Kind:
        kind = wrap(
            Conversations(
                loaded, rows, text_sampler=usual.text_sampler, audio_sampler=usual.audio_sampler, cfg_coef=cfg_coef,
                compile=running.compile, kv_bits=running.kv_bits,
            )
        )  # fmt: skip
        made.append(warm_up(kind, talks.make(Wishes())))
        if record is None:
            return kind
        recording = recorded.Recorded(kind, record)
        running.stack.callback(recording.close)
        return recording

    scheduler = running.scheduler(make, "talk")
    return Talking(name, scheduler, talks.make, talks.translation, talks.persona), made[0]


def hearing(name: str, loaded: Checkpoint, rows: int, running: Running) -> tuple[Hearing, StepTimes]:
    """Speech to text with what the checkpoint ships with."""
    made: list[StepTimes] = []
    defaults = loaded.config.generation
    shipped = defaults.temp_text if "lm_gen_config" in loaded.config.raw else 0.0
    sampler = Sampler(temp=shipped, top_p=0, top_k=defaults.top_k_text)

    def make() -> Transcriptions:
        kind = Transcriptions(loaded, rows, sampler=sampler, compile=running.compile, kv_bits=running.kv_bits)
        made.append(warm_up(kind, Hear()))
        return kind

    scheduler = running.scheduler(make, "stt")
    heads = scheduler.call(lambda kind: kind.heads).result()
    found = delays_of(loaded.config)
    return Hearing(name, scheduler, heads, found.audio_delay_seconds if found else 0.0), made[0]


@dataclass(frozen=True)
class Voices:
    """Voices of a model on this machine by their names, the one that is spoken with else, and where they were looked for."""

    repo: str
    known: dict[str, Path]
    default: str


def voices_of(files: Files, voice: str | None, repo: str | None, say: Callable[[str], None]) -> Voices:
    """Before anything large is read. `voice` is the default one, of `repo`, a folder or repository (default: the checkpoint's own folder
    of voices, else the published repository). Raises `InputError` where it is not to be had; `say` hears of licences.
    """
    repo = repo or voice_files.repo_of(files)
    suffix = voice_files.suffix_for(files.config)
    known = voice_files.known_voices(repo, suffix)
    default = voice or voice_files.default_voice(repo, suffix)
    found = voice_files.find_voice(default, repo, suffix, say)
    # A file of this machine has a name for clients, not a path.
    default = default if default in known else _voice_name(default)
    known.setdefault(default, found)
    return Voices(repo, known, default)


def _voice_name(voice: str) -> str:
    return Path(voice).name if Path(voice).is_file() else voice.removeprefix("hf://")


def speaking(name: str, loaded: Checkpoint, rows: int, running: Running, voices: Voices) -> tuple[Speaking, StepTimes]:
    """Text to speech with the guidance that the published models are used with."""
    made: list[StepTimes] = []
    tts = TTSModel.from_checkpoint(loaded, n_q=loaded.lm.dep_q, voice_repo=voices.repo)
    guidance = TTS_GUIDANCE if tts.valid_cfg_conditionings else None
    if not tts.valid_cfg_conditionings:
        tts.cfg_coef = TTS_GUIDANCE
    usual = Speak(voices=(voices.known[voices.default],), cfg_coef=guidance)

    def make() -> Utterances:
        kind = Utterances(tts, rows, usual, compile=running.compile, kv_bits=running.kv_bits)
        made.append(warm_up(kind, usual, read_aloud))
        return kind

    scheduler = running.scheduler(make, "tts")
    return Speaking(name, scheduler, voices.known, voices.default, usual, clones=not tts.multi_speaker), made[0]


def read_aloud(inbox: Inbox) -> None:
    if not inbox.has_message:
        inbox.send(Say(WORDS))


def refuse_silent(loaded: Checkpoint) -> None:
    """Raise where a checkpoint that should talk generates no sound."""
    if loaded.lm.cfg.dep_q == 0:
        raise InputError(
            f"{loaded.files.source} is a speech-to-text model, which says nothing; python -m moshi_mlx.stt writes down what it hears."
        )
