"""From arguments to a loaded checkpoint: found, announced, and read with progress."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from ..checkpoint import files as checkpoint_files
from ..checkpoint import hub, registry
from ..checkpoint.files import Files, Overrides
from ..checkpoint.fill import describe
from ..checkpoint.loader import DTYPES, Checkpoint, Loader
from ..checkpoint.places import open_place
from ..checkpoint.published import DEFAULT_NAME
from ..config.description import CheckpointConfig, Generation
from ..config.json_text import read_json
from ..errors import ConfigError
from ..machine import memory
from ..machine.capacity import capacity
from ..machine.ranks import Ranks
from ..modules.sampling import Sampler
from .flags import AS_PUBLISHED, TALKERS, first
from .telling import console, say


def samplers(args: argparse.Namespace, defaults: Generation) -> tuple[Sampler, Sampler]:
    """Text and audio samplers: what the flags say, else what the checkpoint ships with."""
    text_temp = first(args.text_temp, args.temp, defaults.temp_text)
    temp = first(args.temp, defaults.temp)
    if args.greedy:
        text_temp = temp = 0.0
    text = Sampler(temp=text_temp, top_p=0, top_k=first(args.text_top_k, defaults.top_k_text))
    return text, Sampler(temp=temp, top_p=0, top_k=first(args.top_k, defaults.top_k))


def check_checkpoint(args: argparse.Namespace, kinds: Sequence[str], default: str = DEFAULT_NAME) -> None:
    """Refuse names that are none, files that are not there and models of the wrong kind, before a device or the network is asked.

    `kinds` are those the command runs, `default` the short name of the model it runs when none is named.
    """
    model, hf_repo, name = _named(args, default)
    if name is not None:
        registry.refuse_kind(name, None, kinds, args.command)
    elif model is not None or hf_repo is not None:
        registry.refuse_kind(None, hf_repo, kinds, args.command)
        open_place(model, hf_repo)
    for path in (args.moshi_weights, args.mimi_weights, args.tokenizer, args.lm_config):
        if path is not None and not hub.is_hub_name(path):
            checkpoint_files.override(path)


def _named(args: argparse.Namespace, default: str) -> tuple[str | None, str | None, str | None]:
    """Folder, repository or short name that is asked for, one of them; none where single files say everything."""
    if args.model is None and args.hf_repo is None:
        return None, None, None if args.moshi_weights and args.lm_config else default
    name = registry.short_name(args.model, args.hf_repo)
    return (None, None, name) if name is not None else (args.model, args.hf_repo, None)


def kind_of(args: argparse.Namespace, default: str = DEFAULT_NAME) -> str | None:
    """The kind of the model that is asked for, by its name or else its configuration; None where neither tells."""
    model, hf_repo, name = _named(args, default)
    if name is not None:
        return registry.by_name(name).kind
    known = registry.by_repo(hf_repo) if hf_repo is not None else None
    if args.lm_config is not None:
        config: Path | None = checkpoint_files.override(args.lm_config)
    elif known is not None:
        return known.kind
    else:
        config = open_place(model, hf_repo).find("config.json", optional=True)
    return None if config is None else CheckpointConfig.from_dict(read_json(config)).kind


def _precision(args: argparse.Namespace, name: str | None) -> int | None:
    """The bits asked for; else those at which the model of a short name suits this machine. None: as the files are."""
    if args.quantized is not None:
        return None if args.quantized == AS_PUBLISHED else args.quantized
    if name is None or args.moshi_weights is not None:
        return None
    machine = capacity()
    best = registry.suited(name, machine)
    if best.bits is not None:
        speed = "" if machine.bandwidth is None else f" and {machine.bandwidth} GB/s"
        what = f"{best.precision} suits this machine, which has {memory.gigabytes(machine.memory)}{speed} for it"
        if not best.suits(machine):
            what = f"{best.precision}, though that too is much for this machine"
        say(f"{name}: {what} (-q chooses)")
    return best.bits


def check_kind(files: Files, kinds: Sequence[str], command: str) -> None:
    """Refuse a model that its configuration shows to be of another kind than a command runs."""
    kind = files.config.kind
    if kind not in kinds:
        why = ", taken for Moshi 7B for want of a config.json that describes it," if files.config.legacy else ""
        raise ConfigError(registry.wrong_kind(f"{files.source}{why}", kind, kinds, command))


def load(
    args: argparse.Namespace,
    *,
    kinds: Sequence[str] = TALKERS,
    default: str = DEFAULT_NAME,
    batch: int = 1,
    with_codec: bool = True,
    check: Callable[[Files], object] | None = None,
) -> Checkpoint:
    """Find, announce and load the checkpoint the arguments name. `check` may refuse it before anything is read.

    `kinds` and `default` as for `check_checkpoint`, which is part of this.
    """
    check_checkpoint(args, kinds, default)
    overrides = Overrides(
        args.moshi_weights, args.mimi_weights, args.tokenizer, args.lm_config, args.lora, args.lora_scale
    )
    model, hf_repo, name = _named(args, default)
    bits = _precision(args, name)
    if name is not None:
        hf_repo = registry.by_name(name, bits).repo
    if args.moshi_weights is None and hf_repo is not None:
        for line in registry.before_download(None, hf_repo, None):
            say(line)
    files = checkpoint_files.locate(model, hf_repo, bits, overrides)
    check_kind(files, kinds, args.command)
    if check is not None:
        check(files)
    loader = Loader(
        files,
        quantized=bits,
        dtype=DTYPES[args.dtype] if args.dtype else None,
        batch=batch,
        with_codec=with_codec,
        context=None if args.context is None else max(1, round(args.context * 12.5)),
    )
    announce(loader)
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("load", total=None)
        told = len(loader.notes)
        loaded = loader.load(lambda done, total: bar.update(task, completed=done, total=total))
    # What showed only while the files were read.
    _say_notes(loader.notes[told:])
    return loaded


def announce(loader: Loader) -> None:
    """Say what will be loaded, at which precision and cost, before it is."""
    files, need = loader.files, loader.estimate()
    kind = files.config.model_type
    licence = files.licence or "see the model card"
    stored = describe(loader.quantizations.values(), loader.dtype)
    activations = str(loader.dtype).removeprefix("mlx.core.")
    say(f"{files.source} ({kind}), licence: {licence}")
    say(f"precision: {stored}, activations {activations} on the {mx.default_device().type.name}")
    if loader.adapter is not None:
        scale = f"scale {loader.adapter.scaling:g}"
        say(f"adapter: {loader.adapter.path}, rank {loader.adapter.rank}, {scale}")
    _say_notes(loader.notes)
    say(f"memory: needs {memory.gigabytes(need.total)}, {memory.gigabytes(memory.available_bytes())} available")


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes:
        say(f"note: {note}")


def share(names: Sequence[str]) -> Ranks:
    """The work on `names`, shared with the other ranks where MLX's launcher started several."""
    return Ranks(names, lambda text: print(f"error: {text}.", file=sys.stderr, flush=True))
