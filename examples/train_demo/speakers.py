"""Who speaks: Moshi's one voice, the two of text-to-speech, the users' many, and those kept for the evaluation.

A user is a synthesiser's voice, moved: pitch and formants shifted and the tempo changed, so that a few voices become many.
"""

import random
from dataclasses import dataclass

from .espeak import Espeak, Voice
from .festival import VOICES as FESTIVAL_VOICES
from .festival import Festival
from .flite import Flite
from .speech import Utterance
from .voice_change import BENDS_HZ, change_voice

# Chosen because the independent recogniser of the evaluation understands it well.
MOSHI_VOICE = Voice("en-us+f2", rate=140, pitch=50, range=50)
TTS_VOICES = {"ada": MOSHI_VOICE, "ben": Voice("en-us+m3", rate=140, pitch=45, range=50)}

ACCENTS = ("en", "en-us", "en-029", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
HELD_OUT_ACCENT = "en-gb-scotland"
VARIANTS = (
    "", "f1", "f3", "f5", "m1", "m2", "m3", "m5", "m6", "m7", "m8", "Alex", "Andy", "Annie",
    "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky", "Lee", "Marco", "Mike",
    "Nguyen", "Storm", "adam", "anika", "antonio", "aunty", "belinda", "boris", "caleb", "david",
    "ed", "edward", "grandma", "grandpa", "gustave", "iven", "iven2", "john", "kaukovalta", "klatt",
    "klatt2", "klatt4", "klatt5", "linda", "marcelo", "max", "michel", "miguel", "norbert", "pablo",
    "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph2", "travis", "victor",
    "zac",
)  # fmt: skip
HELD_OUT_VARIANTS = ("f4", "m4", "Michael", "Andrea", "benjamin", "steph", "klatt3", "Mario")
FLITE_VOICES, HELD_OUT_FLITE_VOICES = ("kal", "kal16", "awb", "slt"), ("rms",)

# Who a speaker is drawn from: voices heard in training, voices of the same synthesisers kept from it, and the
# synthesiser that the first part of training never hears.
HEARD, HELD_OUT, LEFT_OUT = "heard", "held-out", "left-out"
ESPEAK_SHARE = 0.5
MOVED_SHARE = 0.75


@dataclass(frozen=True)
class Speaker:
    """`synthesiser`, its voice, how slowly it speaks (flite, festival), and factors of the change made to its sound (`change_voice`)."""

    synthesiser: str
    voice: Voice | str
    stretch: float = 1.0
    pitch: float = 1.0
    formants: float = 1.0
    tempo: float = 1.0
    bends: tuple[float, ...] = ()


def sample_voice(rng: random.Random, held_out: bool = False) -> Voice:
    """A random espeak-ng voice; the two sides of the split share no variant and no accent."""
    if held_out:
        accent = rng.choice((*ACCENTS, HELD_OUT_ACCENT, HELD_OUT_ACCENT))
        variant = rng.choice(HELD_OUT_VARIANTS)
    else:
        accent, variant = rng.choice(ACCENTS), rng.choice(VARIANTS)
    name = f"{accent}+{variant}" if variant else accent
    return Voice(name, rate=rng.randint(110, 190), pitch=rng.randint(20, 80), range=rng.randint(15, 85))


def sample_speaker(rng: random.Random, side: str) -> Speaker:
    """A random speaker of `HEARD`, `HELD_OUT` or `LEFT_OUT`. In the tests the voices are the synthesisers' own, unmoved."""
    stretch = rng.uniform(0.85, 1.35)
    if side == LEFT_OUT:
        speaker = Speaker("festival", rng.choice(FESTIVAL_VOICES), stretch)
    elif rng.random() < ESPEAK_SHARE:
        speaker = Speaker("espeak", sample_voice(rng, side == HELD_OUT))
    else:
        speaker = Speaker("flite", rng.choice(FLITE_VOICES if side == HEARD else HELD_OUT_FLITE_VOICES), stretch)
    return speaker


def moved(speaker: Speaker, rng: random.Random) -> Speaker:
    """The speaker with another throat and pace, most of the time."""
    if rng.random() >= MOVED_SHARE:
        return speaker
    # Further down than up: most of the synthesisers' voices have short throats. A long throat has a deep voice half of the time;
    # where it has not, no high sounds are lost to the change of pitch.
    formants = 2 ** rng.uniform(-0.45, 0.3)
    deep = formants if rng.random() < 0.5 else 1.0
    return Speaker(
        speaker.synthesiser, speaker.voice, speaker.stretch,
        pitch=deep * 2 ** rng.uniform(-0.35, 0.35), formants=formants, tempo=2 ** rng.uniform(-0.25, 0.25),
        bends=tuple(2 ** rng.uniform(-0.12, 0.12) for _ in BENDS_HZ),
    )  # fmt: skip


class Synthesisers:
    """All of them, each started when it is first needed."""

    def __init__(self):
        self._made: dict[str, Espeak | Flite | Festival] = {}

    def _get(self, name: str) -> Espeak | Flite | Festival:
        if name not in self._made:
            self._made[name] = dict(espeak=Espeak, flite=Flite, festival=Festival)[name]()
        return self._made[name]

    def say(self, text: str, speaker: Speaker, spelling: str | None = None) -> Utterance:
        """`text` by `speaker`. `spelling` replaces it for espeak-ng, the others read the text as it is."""
        found = self._get(speaker.synthesiser)
        if isinstance(found, Espeak):
            assert isinstance(speaker.voice, Voice)
            said = found.say(text, speaker.voice, spelling)
        else:
            assert isinstance(speaker.voice, str)
            said = found.say(text, speaker.voice, speaker.stretch)
        return change_voice(said, speaker.pitch, speaker.formants, speaker.tempo, speaker.bends)
