"""The work of `python -m moshi_mlx.models`."""

from __future__ import annotations

import argparse
import json

import mlx.core as mx
from rich.console import Console
from rich.table import Table

from ..checkpoint import registry
from ..checkpoint.published import DEMOS
from ..checkpoint.registry import Published
from ..machine import memory
from ..machine.capacity import Capacity, capacity, default_dtype
from .telling import say


def run(args: argparse.Namespace) -> int:
    """The command."""
    if args.name in DEMOS:
        if args.json:
            print(
                json.dumps(
                    [{"name": args.name, "folder": str(DEMOS[args.name]), "command": registry.demo_usage(args.name)}],
                    indent=1,
                )
            )
            return 0
        print(f"{args.name}: a small model inside the package, nothing to download")
        print(f"use: {registry.demo_usage(args.name)}")
        print(f"more: {DEMOS[args.name] / 'README.md'}")
        return 0
    machine = capacity()
    shown = registry.ALL if args.name is None else registry.variants(args.name)
    if args.json:
        print(json.dumps([_described(m, machine) for m in shown], indent=1))
    elif args.name is not None:
        for model in shown:
            _tell(model, machine)
    else:
        _list(shown, machine)
    return 0


def _described(model: Published, machine: Capacity) -> dict:
    said = {k: v for k, v in vars(model).items() if k not in ("about", "page")}
    return {
        **said,
        "download_bytes": model.download_bytes,
        "memory_bytes": model.memory_bytes(machine.wide),
        "fits": machine.holds(model.memory_bytes(machine.wide)),
        "suits": model.suits(machine),
        "page": f"docs/models/{model.page}.md",
        "command": model.command,
    }


def _answer(model: Published, machine: Capacity) -> str:
    """Whether it fits, and whether its frames can be read in time."""
    if model.suits(machine):
        return "yes"
    return "slow" if machine.holds(model.memory_bytes(machine.wide)) else "no"


def _size(model: Published, size: int) -> str:
    return f"{'~' if model.about else ''}{memory.gigabytes(size)}"


def _list(models: tuple[Published, ...], machine: Capacity) -> None:
    out = Console(highlight=False)
    if not out.is_terminal:
        # For programs and people who search in it: nothing is wrapped.
        out = Console(highlight=False, width=240)
    table = Table(box=None, pad_edge=False)
    for title in ("name", "precision", "download", "memory", "fits"):
        table.add_column(title, no_wrap=True)
    table.add_column("what it is")
    table.add_column("licence")
    for m in models:
        licence = f"{m.licence} (gated)" if m.gated else m.licence
        download, need = _size(m, m.download_bytes), _size(m, m.memory_bytes(machine.wide))
        table.add_row(m.name, m.precision, download, need, _answer(m, machine), m.what, licence)
    out.print(table)
    computed = str(default_dtype()).removeprefix("mlx.core.")
    say(
        f"memory is for a conversation that fills the window, in {computed} as on this machine's "
        f"{mx.default_device().type.name.upper()}, which has {memory.gigabytes(machine.memory)} for it"
    )
    say(
        "use one: --model NAME, at the precision that suits this machine, or with -q 4, 8 or 16 (bf16); python -m moshi_mlx.models NAME tells more"
    )
    say(
        f"without a download: --model {' or '.join(DEMOS)}, the small models inside the package, see docs/demo-model.md"
    )


def _tell(m: Published, machine: Capacity) -> None:
    sampling = ", ".join(f"{k} {v:g}" for k, v in m.sampling.items())
    answer = {"yes": "fits", "slow": "fits, but is too much to read in the time of a frame on", "no": "does not fit"}[
        _answer(m, machine)
    ]
    lines = {
        f"{m.name}, {m.precision}": m.what,
        "repository": f"{m.repo} ({m.url})",
        "files": ", ".join(f for f in (m.weights, m.codec, m.tokenizer) if f),
        "size": f"{m.parameters / 1e9:.2f} G parameters, {_size(m, m.download_bytes)} to download",
        "memory": f"{_size(m, m.memory_bytes(machine.wide))}, which {answer} this machine's {memory.gigabytes(machine.memory)}",
        "licence": f"{m.licence}; gated: accept it at {m.url}" if m.gated else m.licence,
        "sampling": sampling,
        "use": m.command,
        "more": f"docs/models/{m.page}.md",
    }
    for name, value in lines.items():
        print(f"{name}: {value}")
