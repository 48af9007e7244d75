"""What the demo model hears and says: prompts, answers, vocabulary and the held-out split.

This is the one place that defines the closed grammar; synthesis, dialogue composition, the
tokenizer, the recogniser grammars and the evaluation are all generated from it.
"""

import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

NUMBERS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
]
DIGITS = range(10)

REPEAT_WORDS = [
    "apple",
    "banana",
    "orange",
    "lemon",
    "cherry",
    "cookie",
    "honey",
    "coffee",
    "water",
    "pepper",
    "garden",
    "river",
    "forest",
    "window",
    "table",
    "kitchen",
    "bottle",
    "basket",
    "pocket",
    "camera",
    "computer",
    "piano",
    "guitar",
    "music",
    "picture",
    "paper",
    "pencil",
    "letter",
    "number",
    "doctor",
    "teacher",
    "children",
    "brother",
    "sister",
    "mother",
    "father",
    "baby",
    "monkey",
    "tiger",
    "lion",
    "rabbit",
    "elephant",
    "chicken",
    "penguin",
    "yellow",
    "purple",
    "silver",
    "golden",
    "summer",
    "winter",
    "monday",
    "tuesday",
    "friday",
    "sunday",
    "morning",
    "evening",
    "today",
    "tomorrow",
    "holiday",
    "birthday",
    "football",
    "village",
    "country",
    "station",
    "airport",
    "hospital",
    "library",
    "museum",
    "castle",
    "island",
    "ocean",
    "planet",
    "rocket",
    "thunder",
    "rainbow",
]

# Phrasings; {a} to {d} are digit words, {w} a word of REPEAT_WORDS, {n} a number to count to,
# {digits} some digits.
SUM_PHRASINGS = ("what is {a} plus {b}", "how much is {a} plus {b}", "{a} plus {b}",
                 "tell me {a} plus {b}", "what is the sum of {a} and {b}")  # fmt: skip
THREE_PHRASINGS = ("what is {a} plus {b} plus {c}", "how much is {a} plus {b} plus {c}",
                   "{a} plus {b} plus {c}")  # fmt: skip
FOUR_PHRASINGS = ("{a} plus {b} plus {c} plus {d}",)
REPEAT_PHRASINGS = ("repeat the word {w}", "say {w}", "say the word {w}", "please say {w}",
                    "repeat after me {w}", "can you say {w}")  # fmt: skip
HELD_OUT_REPEAT_PHRASINGS = ("please repeat the word {w}", "can you repeat the word {w}",
                             "please say the word {w}")  # fmt: skip
GREETINGS = ("hello", "hi", "hi there", "hello there", "good morning", "good evening")
NAME_QUESTIONS = ("what is your name", "who are you", "tell me your name",
                  "what are you called")  # fmt: skip
THANKS = ("thank you", "thanks", "thank you very much")
FAREWELLS = ("goodbye", "bye bye", "see you later")
ABOUT = ("tell me about yourself", "what can you do")
WELLBEING = ("how are you", "how are you today", "are you okay")
HEARING = ("can you hear me", "do you hear me", "are you there")
JOKES = ("tell me a joke", "do you know a joke")
NEXT_PHRASINGS = ("what comes after {a}", "which number comes after {a}")
COUNT_PHRASINGS = ("count to {n}", "please count to {n}")
COUNT_TO = range(3, 11)
DIGIT_PHRASINGS = ("say {digits}", "repeat {digits}", "repeat after me {digits}")
LONGER_STRINGS = {3: 600, 4: 1000, 5: 1000}  # digits in a string that is repeated: how many of them
# What a user says while thinking, anywhere after the first word of a question.
HESITATIONS = ("uh", "um", "er")

# Listening noises: the user means "go on", so Moshi says nothing. The double-bracketed ones are
# phoneme mnemonics of the synthesiser, since no spelling gives the right sound.
BACKCHANNELS = {
    "uh huh": "[[V_h'V]]", "mm hm": "[[m-m-_h'm-m-m-]]", "mm": "[['m-m-m-]]", "okay": "okay", "yeah": "yeah",
    "right": "right", "i see": "i see", "ah": "[['A:]]",
}  # fmt: skip

GREETING_ANSWER = "hello how can i help you"
NAME_ANSWER = "my name is moshi"
THANKS_ANSWER = "you are welcome"
FAREWELL_ANSWER = "goodbye"
ABOUT_ANSWER = "i am a small model i can add two numbers repeat a word and count and i listen while i talk"

# As the recogniser of the evaluation takes it for what it is, not for "lion".
SPELLINGS = {FAREWELL_ANSWER: "[[g'U:db'aI]]"}

WELLBEING_ANSWER = "i am fine thank you"
HEARING_ANSWER = "yes i can hear you"
JOKE_ANSWER = "why was six afraid of seven because seven eight nine"

# Words that a dictionary for the recogniser lacks.
EXTRA_PRONUNCIATIONS = {"moshi": "M OW SH IY"}


@dataclass(frozen=True)
class Exchange:
    """One question and the right answer; `kind` groups results in the evaluation."""

    kind: str
    prompt: str
    answer: str


def held_out_sums() -> frozenset[tuple[int, int]]:
    """Ordered pairs never heard in training, in any phrasing.

    Every digit stays in training on both sides, and every total keeps at least one pair: the
    model cannot know the word of a total that it has never said.
    """
    rng = random.Random("held-out sums")
    by_total: dict[int, list[tuple[int, int]]] = {}
    for a in DIGITS:
        for b in DIGITS:
            by_total.setdefault(a + b, []).append((a, b))
    chosen = set()
    for pairs in by_total.values():
        count = 0 if len(pairs) < 3 else 1 if len(pairs) < 8 else 2
        chosen.update(rng.sample(pairs, count))
    return frozenset(chosen)


HELD_OUT_SUMS = held_out_sums()


def names_held_out_sum(text: str) -> bool:
    """Whether `text` says "a plus b", or "the sum of a and b", of a held-out pair."""
    words = text.split()
    for i in range(len(words) - 2):
        a, between, b = words[i : i + 3]
        sums = between == "plus" or (between == "and" and words[max(0, i - 2) : i] == ["sum", "of"])
        if sums and {a, b} <= set(NUMBERS[:10]) and (NUMBERS.index(a), NUMBERS.index(b)) in HELD_OUT_SUMS:
            return True
    return False


def kept_apart(words: list[str]) -> list[list[int]]:
    """For each word of a sentence the digits that would make a held-out sum of it if they stood there instead; none of others.

    Never the word itself: an answer that was broken off and the next one may read like a sum that nobody said.
    """
    numbers = [NUMBERS.index(w) if w in NUMBERS[:10] else None for w in words]
    joined = [
        w == "plus" or (w == "and" and words[max(0, i - 3) : i - 1] == ["sum", "of"]) for i, w in enumerate(words)
    ]
    apart: list[list[int]] = []
    for i, number in enumerate(numbers):
        before = numbers[i - 2] if i >= 2 and joined[i - 1] else None
        after = numbers[i + 2] if i + 2 < len(words) and joined[i + 1] else None
        kept = [d for d in DIGITS if d != number and {(before, d), (d, after)} & HELD_OUT_SUMS]
        apart.append(kept if number is not None else [])
    return apart


def sayable_sums(count: int, of: Iterable[int] = DIGITS) -> list[tuple[int, ...]]:
    """Every `count` operands whose total has a name and that hold no held-out pair side by side.

    Sums of three and more are what makes the model add, and write down what it heard: from pairs
    alone it learns the table by heart and fails on every pair it has not heard.
    """
    every = (t for t in itertools.product(of, repeat=count) if sum(t) < len(NUMBERS))
    return [t for t in every if not {*itertools.pairwise(t)} & HELD_OUT_SUMS]


def recited_operands() -> list[list[tuple[int, ...]]]:
    """Sums whose text is recited, by kind: pairs, triples, four numbers, and pairs and triples with numbers above nine.

    More than anybody says: the fewer of the sums that could be are known, the more it pays to add. No held-out pair.
    """
    numbers = range(len(NUMBERS))
    large = [[t for t in sayable_sums(count, numbers) if max(t) not in DIGITS] for count in (2, 3)]
    return [*(sayable_sums(count) for count in (2, 3, 4)), *large]


def digit_strings() -> list[tuple[int, ...]]:
    """All pairs of digits and many strings of three to five, more than can be learnt by heart.

    What is heard has to be copied one by one, as in sums never heard.
    """
    draw, strings = random.Random("digits"), list(itertools.product(DIGITS, repeat=2))
    for length, count in LONGER_STRINGS.items():
        strings += draw.sample(list(itertools.product(DIGITS, repeat=length)), count)
    return strings


def sums_of_four() -> list[tuple[int, ...]]:
    """As many as there is room for."""
    return random.Random("four").sample(sayable_sums(4), 1200)


def sum_exchange(operands: tuple[int, ...], phrasing: str) -> Exchange:
    words = [NUMBERS[n] for n in operands]
    kind = {2: "sum", 3: "sum3", 4: "sum4"}[len(operands)]
    return Exchange(kind, phrasing.format(**dict(zip("abcd", words, strict=False))), sum_answer(operands))


def sum_answer(operands: tuple[int, ...]) -> str:
    return f"{' plus '.join(NUMBERS[n] for n in operands)} is {NUMBERS[sum(operands)]}"


def count_answer(n: int) -> str:
    return " ".join(NUMBERS[1 : n + 1])


def exchanges(kind: str, held_out: bool = False) -> list[Exchange]:
    """All exchanges of one of `KINDS`. With `held_out`, those kept from training (empty where the kind has none)."""
    if kind == "sum":
        pairs = [(a, b) for a in DIGITS for b in DIGITS if ((a, b) in HELD_OUT_SUMS) == held_out]
        return [sum_exchange(pair, p) for pair in pairs for p in SUM_PHRASINGS]
    if kind == "repeat":
        phrasings = HELD_OUT_REPEAT_PHRASINGS if held_out else REPEAT_PHRASINGS
        return [Exchange(kind, p.format(w=w), w) for w in REPEAT_WORDS for p in phrasings]
    if held_out:
        return []
    if kind == "sum3":
        return [sum_exchange(t, p) for t in sayable_sums(3) for p in THREE_PHRASINGS]
    if kind == "sum4":
        return [sum_exchange(t, p) for t in sums_of_four() for p in FOUR_PHRASINGS]
    if kind == "count":
        return [Exchange(kind, p.format(n=NUMBERS[n]), count_answer(n))
                for n in COUNT_TO for p in COUNT_PHRASINGS]  # fmt: skip
    if kind == "next":
        return [Exchange(kind, p.format(a=NUMBERS[n]), f"{NUMBERS[n + 1]} comes after {NUMBERS[n]}")
                for n in DIGITS for p in NEXT_PHRASINGS]  # fmt: skip
    if kind == "digits":
        said = [" ".join(NUMBERS[d] for d in digits) for digits in digit_strings()]
        return [Exchange(kind, p.format(digits=text), text) for text in said for p in DIGIT_PHRASINGS]
    prompts, answer = {
        "greet": (GREETINGS, GREETING_ANSWER), "name": (NAME_QUESTIONS, NAME_ANSWER),
        "thanks": (THANKS, THANKS_ANSWER), "bye": (FAREWELLS, FAREWELL_ANSWER),
        "about": (ABOUT, ABOUT_ANSWER), "wellbeing": (WELLBEING, WELLBEING_ANSWER),
        "hearing": (HEARING, HEARING_ANSWER), "joke": (JOKES, JOKE_ANSWER),
    }[kind]  # fmt: skip
    return [Exchange(kind, p, answer) for p in prompts]


KINDS = (
    "sum", "sum3", "repeat", "greet", "name", "thanks", "bye", "about", "count", "next", "wellbeing", "hearing", "joke",
    "digits", "sum4",
)  # fmt: skip


def hesitant(prompt: str, rng: random.Random) -> str:
    """The prompt with a hesitation, and a comma on each side of it, after one of its words; one word has no such place."""
    words = prompt.split()
    if len(words) < 2:
        return prompt
    at = rng.randrange(1, len(words))
    return f"{' '.join(words[:at])}, {rng.choice(HESITATIONS)}, {' '.join(words[at:])}"


def haltingly(prompt: str, rng: random.Random) -> str:
    """The prompt with one or two pauses: behind numbers if it has some that more follows, else behind any word but the last."""
    words = prompt.split()
    inner = [i for i, word in enumerate(words[:-1]) if word in NUMBERS] or [*range(len(words) - 1)]
    for i in rng.sample(inner, min(len(inner), rng.choice((1, 1, 2)))):
        words[i] += ","
    return " ".join(words)


def plainly(prompt: str, rng: random.Random) -> str:
    """The prompt."""
    return prompt


def answer_to(prompt: str) -> str:
    """The right answer to a prompt of the domain."""
    every = (e for kind in KINDS for h in (False, True) for e in exchanges(kind, h))
    return next(e.answer for e in every if e.prompt == prompt)


def answers() -> list[str]:
    """Every answer of the domain, held-out sums included, without repetition."""
    found = {e.answer: None for kind in KINDS for h in (False, True) for e in exchanges(kind, h)}
    return list(found)


def vocabulary() -> frozenset[str]:
    """Every word of the domain and of the general sentences."""
    general = (*_ARTICLES, *_ADJECTIVES, *_NOUNS, *_VERBS, *_PLACES)
    return frozenset(" ".join((*prompts(), *answers(), *BACKCHANNELS, *general)).split()) - {
        "uh",
        "huh",
        "mm",
        "hm",
        "ah",
    }


def prompts() -> list[str]:
    """Every prompt of the domain, held-out ones included."""
    return [e.prompt for kind in KINDS for h in (False, True) for e in exchanges(kind, h)]


# Sentences outside the domain, for the codec and the small text-to-speech model.
_ARTICLES = ["the", "a", "one", "my", "your", "this", "that"]
_ADJECTIVES = [
    "small",
    "big",
    "old",
    "new",
    "red",
    "green",
    "blue",
    "quiet",
    "loud",
    "warm",
    "cold",
    "early",
    "late",
    "happy",
    "tired",
    "strong",
    "gentle",
    "bright",
    "dark",
    "simple",
    "heavy",
    "quick",
    "slow",
]
_NOUNS = [
    "horse",
    "bird",
    "house",
    "road",
    "tree",
    "train",
    "ship",
    "letter",
    "engine",
    "forest",
    "market",
    "bridge",
    "clock",
    "chair",
    "friend",
    "neighbour",
    "driver",
    "singer",
    "story",
    "question",
    "answer",
    "machine",
    "voice",
    "fire",
    "stone",
    "field",
    "shadow",
    "harbour",
    "jacket",
    "village",
]
_VERBS = [
    "finds",
    "takes",
    "sees",
    "brings",
    "carries",
    "follows",
    "watches",
    "hears",
    "opens",
    "leaves",
    "reaches",
    "shows",
    "draws",
    "holds",
    "keeps",
    "likes",
    "moves",
    "needs",
    "passes",
    "visits",
]
_PLACES = (
    "near the river", "in the morning", "under the bridge", "after dinner", "before the rain",
    "across the street", "behind the house", "at the station", "for a while", "on the other side",
    "every second day", "without a sound",
)  # fmt: skip


def general_sentence(rng: random.Random) -> str:
    """A random well-formed English sentence, for sounds that the domain does not contain."""

    def phrase() -> str:
        adjective = rng.choice(_ADJECTIVES) + " " if rng.random() < 0.6 else ""
        return f"{rng.choice(_ARTICLES)} {adjective}{rng.choice(_NOUNS)}"

    place = " " + rng.choice(_PLACES) if rng.random() < 0.6 else ""
    return f"{phrase()} {rng.choice(_VERBS)} {phrase()}{place}"


def speech_rules() -> dict[str, str]:
    """Right-hand sides of a recogniser grammar (JSGF) for all that is ever said; `speech` is
    the rule to start from."""

    def any_of(words) -> str:
        return " | ".join(words)

    templates = (*SUM_PHRASINGS, *THREE_PHRASINGS, *FOUR_PHRASINGS, *REPEAT_PHRASINGS, *HELD_OUT_REPEAT_PHRASINGS,
                 *COUNT_PHRASINGS, *NEXT_PHRASINGS)  # fmt: skip
    string = "<digit> <digit> [<digit>] [<digit>] [<digit>]"
    rules = dict(a="<digit>", b="<digit>", c="<digit>", d="<digit>", w="<word>", n="<number>")
    prompt = [t.format(**rules) for t in templates]
    prompt += [t.format(digits=string) for t in DIGIT_PHRASINGS]
    prompt += [*GREETINGS, *NAME_QUESTIONS, *THANKS, *FAREWELLS, *ABOUT, *WELLBEING, *HEARING, *JOKES]
    digits = {e.answer for e in exchanges("digits")}
    fixed = [a for a in answers() if " plus " not in a and " comes after " not in a and a not in digits]
    return dict(
        digit=any_of(NUMBERS[:10]), number=any_of(NUMBERS), word=any_of(REPEAT_WORDS),
        prompt=any_of(prompt), fixed=any_of(fixed),
        answer="<digit> plus <digit> [plus <digit>] [plus <digit>] is <number> | <number> comes after <digit> "
               f"| {string} | <fixed>",
        phrase=f"({any_of(_ARTICLES)}) [{any_of(_ADJECTIVES)}] ({any_of(_NOUNS)})",
        general=f"<phrase> ({any_of(_VERBS)}) <phrase> [{any_of(_PLACES)}]",
        speech="<prompt> | <answer> | <general>",
    )  # fmt: skip


def is_held_out(text: str, share: float = 0.1) -> bool:
    """A fixed pseudo-random `share` of all texts, independent of any seed of a run."""
    return random.Random("held out: " + text).random() < share


def general_sentences(seed: int, held_out: bool) -> Iterator[str]:
    """An endless stream of sentences from one side of the split."""
    rng = random.Random(seed)
    while True:
        text = general_sentence(rng)
        if is_held_out(text) == held_out:
            yield text
