"""`python -m moshi_mlx.bench`."""

from __future__ import annotations

from .. import commands
from .measure import main

if __name__ == "__main__":
    commands.run(main)
