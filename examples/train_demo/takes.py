"""Everything that is ever said in training, synthesised once: short recordings with the onsets of their words and sounds.

A set is a folder of shards, `NNNN.npy` (samples) beside `NNNN.json` (what they are); each shard depends on the seed and its
number alone.
"""

import json
import multiprocessing
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from moshi_mlx.errors import MoshiError

from . import domain
from .augment import at_level
from .phones import INDEX
from .progress import Progress
from .sentences import Chains, heard_words
from .speakers import HEARD, LEFT_OUT, MOSHI_VOICE, TTS_VOICES, Speaker, Synthesisers, moved, sample_speaker
from .stages import HEARD_SET, LEFT_OUT_SET, OWN_SET, READERS_SET

LEVEL_DB = -20.0
# Roles of a take.
ASK, MURMUR, OTHER = "ask", "murmur", "other"
# Many questions of each speaker: what is heard twice is soon known by heart, voice and answer together.
SPEAKERS_IN_SHARD, ASKS, MURMURS, OTHERS = 8, 90, 8, 50
DOMAIN_SENTENCE_SHARE = 0.6
# How a question is asked: as it is written, with an "uh" in it, with pauses.
MANNERS, MANNER_WEIGHTS = (domain.plainly, domain.hesitant, domain.haltingly), (0.74, 0.12, 0.14)
SENTENCES_IN_SHARD, ANSWERS_IN_SHARD = 250, 250
WORDS_HOPPED_TO = 900  # in a shard of sentences, about
KIND_WEIGHTS = {
    "sum": 0.18, "sum3": 0.16, "sum4": 0.09, "digits": 0.15, "repeat": 0.13, "greet": 0.03, "name": 0.04, "thanks": 0.025,
    "bye": 0.025, "about": 0.03, "count": 0.05, "next": 0.03, "wellbeing": 0.02, "hearing": 0.02, "joke": 0.02,
}  # fmt: skip


@dataclass
class Take:
    """`words` and `phonemes` are (name or number in `phones.PHONES`, onset); samples count from the take's own start.

    `speaker` numbers the speakers of a set, `answer` is what Moshi says to it, `at` and `length` place its samples.
    """

    speaker: int
    role: str
    text: str
    answer: str
    words: list
    phonemes: list
    at: int = 0
    length: int = 0


@dataclass(frozen=True)
class Line:
    """What one speaker is to say, and the rest of a `Take`."""

    speaker: Speaker
    number: int
    role: str
    text: str
    answer: str = ""
    spelling: str | None = None


@dataclass(frozen=True)
class TakeSet:
    """`name` of the folder, `shards` it has, and what is said in one: (seed, number of the shard) -> lines."""

    name: str
    shards: int
    lines: Callable[[int, int], Iterator[Line]]


@cache
def _exchanges() -> dict[str, list[domain.Exchange]]:
    return {kind: domain.exchanges(kind) for kind in domain.KINDS}


def user_lines(seed: int, shard: int, side: str) -> Iterator[Line]:
    """What the users of a shard say in training."""
    exchanges = _exchanges()
    chains = Chains(heard_words()).stream(seed * 100_003 + shard, first=97 * shard)
    general = domain.general_sentences(seed * 100_003 + shard, held_out=False)
    kinds, weights = list(KIND_WEIGHTS), list(KIND_WEIGHTS.values())
    for number in range(shard * SPEAKERS_IN_SHARD, (shard + 1) * SPEAKERS_IN_SHARD):
        rng = random.Random(f"{seed} {side} {number}")
        speaker = moved(sample_speaker(rng, side), rng)
        for kind in rng.choices(kinds, weights, k=ASKS):
            exchange = rng.choice(exchanges[kind])
            manner = rng.choices(MANNERS, MANNER_WEIGHTS)[0]
            yield Line(speaker, number, ASK, manner(exchange.prompt, rng), exchange.answer)
        for text, spelling in rng.sample(list(domain.BACKCHANNELS.items()), MURMURS):
            yield Line(speaker, number, MURMUR, text, spelling=spelling)
        for _ in range(OTHERS):
            text = next(general) if rng.random() < DOMAIN_SENTENCE_SHARE else next(chains)
            yield Line(speaker, number, OTHER, text)


@cache
def own_answers() -> tuple[str, ...]:
    """What Moshi may be taught to say: never the total of a held-out sum."""
    return tuple(dict.fromkeys(e.answer for found in _exchanges().values() for e in found))


def own_lines(seed: int, shard: int) -> Iterator[Line]:
    speaker = Speaker("espeak", MOSHI_VOICE)
    for text in own_answers()[shard * ANSWERS_IN_SHARD : (shard + 1) * ANSWERS_IN_SHARD]:
        yield Line(speaker, 0, OTHER, text, spelling=domain.SPELLINGS.get(text))


def reader_lines(seed: int, shard: int) -> Iterator[Line]:
    """The voices of text-to-speech in turn, each with sentences of its own."""
    number = shard % len(TTS_VOICES)
    speaker = Speaker("espeak", list(TTS_VOICES.values())[number])
    # Shards of a voice go on through the words where the one before stopped, or nearly so.
    first = shard // len(TTS_VOICES) * WORDS_HOPPED_TO
    chains = Chains().stream(seed * 100_019 + shard, first=first)
    for _ in range(SENTENCES_IN_SHARD):
        yield Line(speaker, number, OTHER, next(chains))


def heard_lines(seed: int, shard: int) -> Iterator[Line]:
    return user_lines(seed, shard, HEARD)


def left_out_lines(seed: int, shard: int) -> Iterator[Line]:
    return user_lines(seed, shard, LEFT_OUT)


def all_sets(speakers: int, left_out_speakers: int, sentences: int) -> list[TakeSet]:
    """`speakers` of users, as many of the synthesiser added last, and `sentences` of each voice of text-to-speech."""
    return [
        TakeSet(OWN_SET, -(-len(own_answers()) // ANSWERS_IN_SHARD), own_lines),
        TakeSet(HEARD_SET, -(-speakers // SPEAKERS_IN_SHARD), heard_lines),
        TakeSet(READERS_SET, -(-sentences * len(TTS_VOICES) // SENTENCES_IN_SHARD), reader_lines),
        TakeSet(LEFT_OUT_SET, -(-left_out_speakers // SPEAKERS_IN_SHARD), left_out_lines),
    ]


def _write(job: tuple[Path, TakeSet, int, int]) -> None:
    path, wanted, seed, shard = job
    synthesisers, takes, sounds, at = Synthesisers(), [], [], 0
    for line in wanted.lines(seed, shard):
        said = synthesisers.say(line.text, line.speaker, line.spelling)
        words = [(w, onset) for w, onset in said.words if w not in domain.HESITATIONS]
        if line.spelling and line.role == OTHER:  # of phonemes the synthesiser names no word
            words = [(line.text, 0)]
        sounds_of = [(INDEX[p], onset) for p, onset in said.phonemes]
        wav, text = at_level(said.wav, LEVEL_DB), " ".join(w for w, _ in words)
        take = Take(line.number, line.role, text, line.answer, words, sounds_of, at, len(wav))
        at += len(wav)
        takes.append(asdict(take))
        sounds.append((wav * 32767).astype(np.int16))
    path.with_suffix(".json").write_text(json.dumps(takes))
    part = path.with_suffix(".part.npy")
    np.save(part, np.concatenate(sounds))
    part.rename(path)


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that ends all others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def record(folder: Path, sets: list[TakeSet], seed: int, workers: int) -> None:
    """Write the shards of all `sets` that are not there yet."""
    jobs = []
    for wanted in sets:
        (folder / wanted.name).mkdir(parents=True, exist_ok=True)
        paths = [folder / wanted.name / f"{i:04d}.npy" for i in range(wanted.shards)]
        jobs += [(path, wanted, seed, i) for i, path in enumerate(paths) if not path.exists()]
    # A process for each shard: the synthesisers' global state would make one depend on those before it.
    # Each is a copy of one that has imported everything and loaded nothing else.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = context.Pool(workers, _leave_interrupts, maxtasksperchild=1)
    with pool, Progress("takes", sum(s.shards for s in sets), "shards") as progress:
        for _ in pool.imap_unordered(_write, jobs):
            progress.advance()


class Takes:
    """A set in memory; its sound is read when it is first asked for."""

    def __init__(self, folder: Path):
        self._paths, self.all, at = sorted(folder.glob("[0-9]*[0-9].npy")), [], 0
        for path in self._paths:
            for fields in json.loads(path.with_suffix(".json").read_text()):
                take = Take(**fields)
                take.at += at
                self.all.append(take)
            at = self.all[-1].at + self.all[-1].length
        if not self.all:
            raise MoshiError(f"{folder} has no recordings; run the stage `takes` first")
        self.of: dict[tuple[int, str], list[Take]] = {}
        for take in self.all:
            self.of.setdefault((take.speaker, take.role), []).append(take)
        self.speakers = sorted({take.speaker for take in self.all})

    @cached_property
    def sound(self) -> np.ndarray:
        """Samples of all takes, int16."""
        return np.concatenate([np.load(path) for path in self._paths])

    def wav(self, take: Take) -> np.ndarray:
        """Samples [length] float32."""
        return self.sound[take.at : take.at + take.length].astype(np.float32) / 32767
