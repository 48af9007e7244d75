"""The work of `python -m moshi_mlx.quantize`: which layer how, the folder, and the report."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import numpy as np
from moshi_mlx.convert import card, hub_upload
from moshi_mlx.convert.command import (
    announce,
    check,
    fingerprint,
    make,
    request_of,
    say_before_download,
)  # fmt: skip
from moshi_mlx.convert.config_file import config_file, recorded
from moshi_mlx.convert.folder import write_json, written
from moshi_mlx.convert.outputs import Outputs, add_companions, add_voices, quantized_model
from moshi_mlx.convert.source import Source, open_source
from moshi_mlx.convert.verify import open_result
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moshi_mlx.audio.files import read_audio
from moshi_mlx.checkpoint import DTYPES, Loader, recipe_table, recipes
from moshi_mlx.checkpoint.files import locate
from moshi_mlx.checkpoint.packing import Quantization, packed_bytes
from moshi_mlx.checkpoint.recipes import Packing
from moshi_mlx.commands.flags import refuse_overwriting
from moshi_mlx.commands.telling import console, say
from moshi_mlx.errors import InputError
from moshi_mlx.machine.memory import gigabytes
from moshi_mlx.output import check_new_folder, check_writable, write_text
from moshi_mlx.version import __version__

from . import codec, codes, mixed, picture, quality, recipe_files, report
from .trial import Trial

PROG = ("python", "-m", "moshi_mlx.quantize")


@dataclass
class Work:
    """What one run decided, for its last steps."""

    args: argparse.Namespace
    source: Source
    packing: Packing
    weights: str
    held_out: tuple[mx.array, str] | None


def run(args: argparse.Namespace, typed: Sequence[str]) -> int:
    """The command; `typed` are its arguments as they were, for the model card."""
    _check(args)
    check_new_folder(args.destination)
    usual = recipes.base(args.bits, args.group_size, args.mode)
    if args.recipe is not None:
        recipe_files.read_recipe(args.recipe)
    say_before_download(args.source)
    source = open_source(request_of(args))
    if source.model is None:
        raise InputError(f"{source.name} holds no language model to quantise.")
    if source.model.quantizations:
        raise InputError(f"{source.name} is quantised already; quantise the model it was made from.")
    cfg = source.model.config.lm
    asked, args.recipe = args.recipe, args.recipe or recipes.default_recipe(source.model.config)
    if asked is None and args.recipe != recipe_table.UNIFORM:
        source.notes.append(
            f"packed by the recipe {args.recipe}: {recipe_table.WORDS[args.recipe]} (--recipe uniform packs all alike)."
        )
    layers = recipes.layers_of(cfg)
    packing = recipes.by_rules(layers, recipe_files.read_recipe(args.recipe), usual)
    recipe_files.check_shared(packing, cfg)
    held_out = None
    if args.report or args.recipe == recipe_table.MIXED:
        held_out = codes.held_out(source, args.codes, args.audio, args.frames)
    if args.recipe == recipe_table.MIXED:
        assert held_out is not None
        fitted, judged = codes.halves(held_out[0])
        held_out = judged, f"the second half of {held_out[1]}"
        packing = _mixed(args, source, packing, layers, usual, fitted)
    name = recipe_files.file_name(packing, args.recipe)
    planned = _plan(args, source, packing, name, usual)
    announce(source, planned, args.destination)
    job = {
        "version": __version__,
        "args": vars(args),
        "sources": fingerprint(source),
        "packing": recorded(packing.layers),
    }
    work = Work(args, source, packing, name, held_out)
    made: list[report.Report] = []

    def finish(folder: Path) -> None:
        if args.report:
            made.append(_report(work, folder))
        facts = {"size": gigabytes(written(folder)), "packing": _words(packing), "recipe": _recipe_words(args.recipe)}
        text = card.write(source, "mlx", [*PROG, *typed], facts, args.destination.name, quantized=True)
        write_text(folder / "README.md", text)
        # The check that every command makes before it loads a checkpoint.
        Loader(locate(folder), with_codec=False)
        if args.verify is not False:
            check(source, folder, exact=False, asked=bool(args.verify))

    make(planned, args.destination, job, finish)
    say(f"wrote {args.destination} ({gigabytes(written(args.destination))}, {_words(packing)})")
    if made:
        _show(made[0], args.report, not args.no_picture)
    if args.upload_repo:
        hub_upload.upload(args.destination, args.upload_repo)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Flags that do not go together, before anything is looked for."""
    if args.budget is not None and args.recipe != recipe_table.MIXED:
        raise InputError("--budget is the size of the recipe mixed; add --recipe mixed.")
    if args.recipe == recipe_table.MIXED and args.mode != "affine":
        raise InputError("the recipe mixed lifts affine layers to more bits; leave out --mode.")
    if args.codes is not None and args.audio is not None:
        raise InputError("compare either on --codes or on --audio, not on both.")
    if (args.codes or args.audio) and not (args.report or args.recipe == recipe_table.MIXED):
        raise InputError("--codes and --audio are what a --report compares on; add --report FILE.json.")
    if not 1 <= args.frames <= 10_000:
        raise InputError(f"--frames should be 1 to 10000, found {args.frames}.")
    if args.report is not None:
        if args.report.suffix != ".json":
            raise InputError(f"--report writes JSON: {args.report} should end in .json.")
        written = [args.report] if args.no_picture else [args.report, args.report.with_suffix(".png")]
        for path in written:
            check_writable(path)
        refuse_overwriting(args, written)
        if not args.no_picture:
            picture.require_matplotlib()


@contextmanager
def _bar(what: str) -> Iterator:
    """A progress bar as a function of (done, total)."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _mixed(
    args: argparse.Namespace, source: Source, packing: Packing, layers: dict, usual: Quantization, fitted: mx.array
) -> Packing:
    assert source.model is not None
    packed = {path: layers[path] for path in packing.layers}
    if args.budget is not None:
        budget = mixed.parse_budget(args.budget, packed)
    else:
        budget = int(mixed.DEFAULT_BUDGET * sum(packed_bytes(s, usual) for s in packed.values()))
    trial = Trial(source.model, fitted)
    if trial.streamed:
        say("note: the model does not fit into memory and is read again for every trial; this takes long.")
    with _bar("measuring") as progress:
        groups = mixed.measure(trial, packing, layers, usual, source.model.config.lm, progress)
    return replace(mixed.allocate(groups, budget), dense=packing.dense)


def _plan(args: argparse.Namespace, source: Source, packing: Packing, name: str, usual: Quantization) -> Outputs:
    """The files of the folder."""
    model, outputs = source.model, Outputs()
    assert model is not None
    outputs.weights[name] = quantized_model(source, packing.layers, DTYPES[args.dtype] if args.dtype else None)
    add_companions(outputs, source)
    add_voices(outputs, source, "voices/")
    outputs.texts["config.json"] = config_file(source, model, name, recorded(packing.layers, packing.dense), "mlx")
    if args.codec_bits is None:
        return outputs
    if source.codec is None:
        raise InputError("--codec-bits packs the codec, and there is none here; give one with --mimi-weights.")
    q = Quantization(recipe_table.DEFAULT_GROUP_SIZES[args.codec_bits], args.codec_bits)
    outputs.copies.pop(source.codec.name, None)
    outputs.weights.pop(source.codec.name, None)
    packed_name = codec.file_name(source.codec.name, q)
    outputs.weights[packed_name] = codec.packed_codec(source.codec, q)
    outputs.texts["config.json"]["mimi_name"] = packed_name
    return outputs


def _recipe_words(recipe: str) -> str:
    """A recipe as the card tells it: its name and what it keeps, or the name of its file."""
    return f"{recipe} ({recipe_table.WORDS[recipe]})" if recipe in recipe_table.WORDS else Path(recipe).name


def _words(packing: Packing) -> str:
    return " + ".join(sorted({str(q) for q in packing.layers.values()}))


def _report(work: Work, folder: Path) -> report.Report:
    """Compare the finished folder with its source."""
    source, args = work.source, work.args
    assert source.model is not None and work.held_out is not None
    result = open_result(source.model, folder, only_model=True).model
    assert result is not None
    cfg, (held_out, what) = source.model.config.lm, work.held_out
    with _bar("layer errors") as progress:
        layers = report.layer_errors(source.model, result, work.packing, progress)
    streams = quality.compare(Trial(source.model, held_out).logits(), Trial(result, held_out).logits())
    read = report.frame_bytes(cfg, work.packing.layers, mx.bfloat16)
    before = report.frame_bytes(cfg, None, mx.bfloat16)
    weights = sum(int(np.prod(shape)) for shape in source.model.parameters.values())
    size = (folder / work.weights).stat().st_size
    return report.Report(
        source=source.name,
        result=args.destination.name,
        recipe=args.recipe,
        bits_per_weight=round(8 * size / weights, 3),
        source_bytes=source.model.tensors.nbytes,
        result_bytes=size,
        frame_bytes={"source": before["temporal"] + before["depth"], **read},
        codes=what,
        streams=streams,
        layers=layers,
        chips=report.chip_rows(read),
        codec=_codec_report(work, folder),
    )


def _codec_report(work: Work, folder: Path) -> dict | None:
    """The packed codec on the recording, or on noise where there is none."""
    source, args = work.source, work.args
    if args.codec_bits is None or source.codec is None or source.model is None:
        return None
    cfg = source.model.config.lm
    rate = source.codec.cfg.sample_rate
    pcm = (
        read_audio(args.audio, rate, tell=say)
        if args.audio
        else 0.1 * np.random.default_rng(codes.SEED).standard_normal(2 * rate)
    )
    name = codec.file_name(source.codec.name, Quantization(0, args.codec_bits))
    levels = min(max(cfg.dep_q, cfg.n_q - cfg.dep_q), source.codec.cfg.num_codebooks)
    found = codec.quality(source.codec, folder / name, pcm, levels)
    return {"file": name, "bytes": (folder / name).stat().st_size, "on": args.audio or "noise", **found}


def _show(made: report.Report, path: Path, with_picture: bool) -> None:
    write_json(path, made.as_json())
    for part in report.shown(made):
        if isinstance(part, str):
            say(part)
        else:
            console.print(part)
    say(f"wrote {path}")
    if with_picture:
        drawn = path.with_suffix(".png")
        picture.draw(made, drawn)
        say(f"wrote {drawn}")
