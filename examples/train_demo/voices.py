"""Who speaks: Moshi's one voice, the users' many, and the voices kept for the evaluation."""

import random

from .espeak import Voice

# Chosen because the independent recogniser of the evaluation understands it well.
MOSHI_VOICE = Voice("en-us+f2", rate=140, pitch=50, range=50)

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


def sample_voice(rng: random.Random, held_out: bool = False) -> Voice:
    """A random user voice; the two sides of the split share no variant and no accent."""
    if held_out:
        accent = rng.choice((*ACCENTS, HELD_OUT_ACCENT, HELD_OUT_ACCENT))
        variant = rng.choice(HELD_OUT_VARIANTS)
    else:
        accent, variant = rng.choice(ACCENTS), rng.choice(VARIANTS)
    name = f"{accent}+{variant}" if variant else accent
    return Voice(name, rate=rng.randint(120, 190), pitch=rng.randint(25, 75), range=rng.randint(20, 80))
