"""Errors a user can cause, each told in one sentence.

Commands catch `MoshiError`, print its text and exit with status 1; anything else is a defect of ours and keeps its
traceback. A message says what was found, what was expected and what to do next.
"""


class MoshiError(Exception):
    """Base of all errors that are explained to the user rather than traced."""


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
