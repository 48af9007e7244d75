"""The work of `python -m moshi_mlx.convert`: the steps of a conversion, and what is said about them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from moshi_mlx.checkpoint import DTYPES, registry
from moshi_mlx.checkpoint.weights_writer import refuse_if_disk_is_full
from moshi_mlx.commands.telling import console, say
from moshi_mlx.errors import InputError
from moshi_mlx.machine.memory import gigabytes
from moshi_mlx.output import check_new_folder, make_folder, write_bytes, write_text
from moshi_mlx.version import __version__

from . import card, hub_upload, outputs, verify
from .folder import building, copy, write_json, written
from .outputs import Outputs
from .request import Request
from .source import Source, open_source
from .stream import write_file
from .tensors import check_finite

PROG = ("python", "-m", "moshi_mlx.convert")


def request_of(args: argparse.Namespace) -> Request:
    return Request(
        args.source,
        args.config,
        args.mimi_weights,
        args.tokenizer,
        args.lora,
        args.lora_scale,
        args.keep_user_codebooks,
    )


def run(args: argparse.Namespace, typed: Sequence[str]) -> int:
    """The command; `typed` are its arguments as they were, for the model card."""
    check_new_folder(args.destination)
    say_before_download(args.source)
    source = open_source(request_of(args))
    if args.verify and source.model is None:
        raise InputError("--verify compares language models; there is none here.")
    planned = outputs.plan(source, args.to, DTYPES[args.dtype] if args.dtype else None)
    announce(source, planned, args.destination)
    command = [*PROG, *typed]
    job = {"version": __version__, "args": vars(args), "sources": fingerprint(source)}

    def finish(folder: Path) -> None:
        facts = {"size": gigabytes(written(folder)), "type": args.dtype or "as stored"}
        write_text(folder / "README.md", card.write(source, args.to, command, facts, args.destination.name))
        if source.model is not None and args.verify is not False:
            check(source, folder, keeps_numbers(args, source), asked=bool(args.verify))

    make(planned, args.destination, job, finish)
    say(f"wrote {args.destination} ({gigabytes(written(args.destination))})")
    if args.upload_repo:
        hub_upload.upload(args.destination, args.upload_repo)
    return 0


def say_before_download(source: str) -> None:
    """Size, licence and gating of a published checkpoint that will be fetched."""
    is_repository = source.count("/") == 1 and not Path(source).exists()
    for line in registry.before_download(source, source if is_repository else None, None):
        say(line)


def keeps_numbers(args: argparse.Namespace, source: Source) -> bool:
    """Whether the result holds the very numbers of the source: nothing is cast, unpacked or merged."""
    model = source.model
    assert model is not None
    rounded = args.dtype is not None or model.reduced or model.merged
    return not rounded and (args.to == "mlx" or not model.quantizations)


def fingerprint(source: Source) -> list[list[Any]]:
    """The files of a source, so that a continued run is one of the same bytes."""
    parts = [source.model and source.model.tensors, source.codec and source.codec.tensors]
    files = sorted(
        {info.file for tensors in parts if tensors for info in tensors.values()} | {*source.speakers.values()}
    )
    return [[str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def announce(source: Source, planned: Outputs, destination: Path) -> None:
    """Say what will be made of what, before it is."""
    say(f"{source.name}: {source.kind}, licence: {source.licence or 'see the model card'}")
    for note in source.notes:
        say(f"note: {note}")
    say(f"{destination}: {gigabytes(planned.nbytes)} to write, at most {gigabytes(planned.largest)} of it at a time")


def make(planned: Outputs, destination: Path, job: Any, finish: Callable[[Path], None]) -> None:
    """Build the folder; `finish` sees it whole, before it gets its name."""
    # The configuration decides what is made of the same tensors.
    with building(destination, {"job": job, "texts": planned.texts}) as folder:
        refuse_if_disk_is_full(folder, planned.nbytes - written(folder))
        columns = (
            TextColumn("converting"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
            task = bar.add_task("convert", total=planned.cost)
            for name, path in planned.copies.items():
                check_finite(path)
                make_folder((folder / name).parent)
                copy(path, folder / name)
            for name, jobs in planned.weights.items():
                write_file(folder / name, jobs, {"format": "pt"}, lambda count: bar.advance(task, count))
        for name, data in planned.texts.items():
            write_json(folder / name, data)
        for name, content in planned.contents.items():
            write_bytes(folder / name, content)
        for step in planned.steps:
            step(folder)
        finish(folder)


def check(source: Source, folder: Path, exact: bool, asked: bool) -> None:
    """Compare source and result, unless they are large and nobody asked. A converted codec is compared where it was rewritten."""
    assert source.model is not None
    if not asked and not verify.is_small(source.model):
        return
    verify.refuse_if_too_large(source.model)
    rewritten = source.codec is not None and source.codec.path is None and exact
    found = verify.compare(source.model, source.codec if rewritten else None, folder, exact)
    say(found.sentence())
