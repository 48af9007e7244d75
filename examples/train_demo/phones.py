"""One set of speech sounds for every synthesiser: the phones of the CMU dictionary, "_" for silence."""

PHONES = (
    "_", "aa", "ae", "ah", "ao", "aw", "ax", "ay", "b", "ch", "d", "dh", "eh", "er", "ey", "f", "g", "hh", "ih", "iy",
    "jh", "k", "l", "m", "n", "ng", "ow", "oy", "p", "r", "s", "sh", "t", "th", "uh", "uw", "v", "w", "y", "z", "zh",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(PHONES)}

# Of espeak-ng's English voices. Diphthongs with a following r count as their vowel.
_ESPEAK = {
    "0": "aa", "0#": "aa", "A:": "aa", "A@": "aa", "aa": "ae", "a": "ae", "a#": "ax", "V": "ah", "VR": "er", "O:": "ao", "O2": "ao",
    "O": "ao", "O@": "ao", "o@": "ao", "aU": "aw", "@": "ax", "@2": "ax", "@-": "ax", "@L": "l", "aI": "ay", "aI2": "ay",
    "aI3": "ay", "aI@": "ay", "tS": "ch", "D": "dh", "E": "eh", "e@": "eh", "3": "er", "3:": "er", "eI": "ey", "h": "hh", "I": "ih",
    "I2": "ih", "I#": "ih", "IR": "er", "i@": "ih", "i@3": "ih", "i:": "iy", "i": "iy", "dZ": "jh", "N": "ng", "oU": "ow",
    "o": "ow", "OI": "oy", "r": "r", "r-": "r", "S": "sh", "t#": "t", "t[": "t", "t2": "t", "T": "th", "U": "uh", "U@": "uh",
    "u:": "uw", "u": "uw", "w#": "w", "j": "y", ";": "y", "Z": "zh",
}  # fmt: skip
# Of festival and flite.
_FESTIVAL = {
    "pau": "_",
    "h#": "_",
    "brth": "_",
    "axr": "er",
    "ix": "ih",
    "dx": "t",
    "el": "l",
    "em": "m",
    "en": "n",
    "ux": "uw",
}


def of_espeak(name: str) -> str:
    """A sound that is not in the table, of a rare accent, is its first letter or the neutral vowel."""
    if name.startswith("_"):
        return "_"
    found = _ESPEAK.get(name, name[:1].lower())
    return found if found in INDEX else "ax"


def of_festival(name: str) -> str:
    found = _FESTIVAL.get(name, name)
    return found if found in INDEX else "ax"
