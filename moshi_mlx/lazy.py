"""Names that a package hands on from its files, each imported when it is first asked for.

Importing one file of a room then costs what that file needs, and a published import path may name something of a room above it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def hand_on(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of `package`: `homes` says for each name which module, relative to the package, defines it.

    A module whose own name is asked for is handed on itself.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(homes[name], package)
        return module if homes[name].rpartition(".")[2] == name and not hasattr(module, name) else getattr(module, name)

    return get
