"""What a command says about its work."""

from __future__ import annotations

from rich.console import Console

from ..errors import clean

# Results go to standard output, everything about them to standard error.
console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line about the work, as it is: no markup, no wrapping."""
    console.print(clean(text), markup=False, soft_wrap=True)
