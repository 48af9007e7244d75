"""Names that a package hands on from its files, each imported when it is first asked for.

Importing one file of a room then costs what that file needs, and a published import path may name something of a room above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def hand_on(module: str, package: str | None, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `module`: `homes` says for each name which module, relative to `package`, defines it.

    A module whose own name is asked for is handed on itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home = import_module(homes[name], package)
        is_module = homes[name].rpartition(".")[2] == name and not hasattr(home, name)
        return home if is_module else getattr(home, name)

    return get
