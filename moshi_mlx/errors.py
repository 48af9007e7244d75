"""Errors a user can cause, each told in one sentence, and the cleaning of what sentences quote.

Commands catch `MoshiError`, print its text and exit with status 1; anything else is a defect of ours and keeps its
traceback. A message says what was found, what was expected and what to do next.

What a file says (names, licences, values, decoded text) may hold escape sequences that a terminal would obey. Every text from a file
goes through `clean` before it is shown: errors do so themselves, `commands.say` does it for the rest.
"""

from __future__ import annotations

import os
import reprlib
import signal
import sys
import unicodedata
from typing import Any

# Characters of a message and of a value in it. Longer ones lose their middle: the end of a message says what to do next.
LONGEST_MESSAGE, LONGEST_VALUE = 1600, 300
LONGEST_BYTES = 2000
# Control characters, halves of surrogate pairs, separators of lines and paragraphs.
_UNPRINTABLE = ("Cc", "Cs", "Zl", "Zp")
# These would turn the direction of everything that follows.
_TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlong = 40
_short.maxlist = _short.maxtuple = 40
_short.maxdict = 8
_short.maxlevel = 3


def clean(text: str, longest: int | None = None, keep: str = "") -> str:
    """`text` without what a terminal would obey: line ends become spaces, other control characters are left out.

    Characters of `keep` stay as they are. What is longer than `longest` characters loses its middle.
    """
    if longest is not None:
        text = _shortened(text, longest)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep else " " if c in "\n\t\r" else c for c in text if c in keep or _is_shown(c))


def _shortened(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest // 2]} [...] {text[-(longest // 2) :]}"


def _is_shown(c: str) -> bool:
    return c in "\n\t\r" or (unicodedata.category(c) not in _UNPRINTABLE and c not in _TURNING)


def quoted(value: Any) -> str:
    """A value of a file as a message shows it: as Python writes it, long ones with dots in the middle."""
    return _shortened(_short.repr(value), LONGEST_VALUE)


def first_line(error: BaseException) -> str:
    """What an error of another package says, as far as a sentence can hold it."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def interrupt_at_once() -> None:
    """Have Ctrl-C end a command that is still being imported without a traceback. `commands.run` takes over from here.

    Only where Python was told to run one of ours: `python -m moshi_mlx.stt` has this first word until its module was found.
    """
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if sys.argv[:1] == ["-m"] and "-m" in words[:-1] else ""
    # A shell has what it runs in the background ignore interrupts.
    if module.partition(".")[0] == "moshi_mlx" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, quit_at_once)


def quit_at_once(signum: int, frame: object) -> None:
    """Nothing is under way yet that would have to be ended in order."""
    os.write(2, b"\ninterrupted\n")
    os._exit(128 + signum)


class MoshiError(Exception):
    """Base of all errors that are explained to the user rather than traced."""

    def __init__(self, message: str = "", *rest: object):
        message = clean(message, LONGEST_MESSAGE)
        if len(message.encode()) > LONGEST_BYTES:
            message = _shortened(message, LONGEST_BYTES // 4)
        super().__init__(message, *rest)


class ConfigError(MoshiError, ValueError):
    """A `config.json` (or a flag standing for one) is missing, unreadable or contradicts itself."""


class CheckpointError(MoshiError, ValueError):
    """Weights, tokenizer or codec files are missing, damaged or do not belong together."""


class AudioError(MoshiError, ValueError):
    """An audio file or device cannot be used."""


class InputError(MoshiError, ValueError):
    """An argument given to a command or to the library is not usable."""


class OutputError(MoshiError, ValueError):
    """A file or folder that was asked for cannot be written."""


class CutShortWarning(UserWarning):
    """The end of a recording is missing; what is there is used."""
