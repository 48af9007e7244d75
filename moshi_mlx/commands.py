"""What every command shares: arguments, loading with progress, and errors told in one sentence."""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import mlx.core as mx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from .audio.pcm import RAW_FORMATS
from .checkpoint import files as checkpoint_files
from .checkpoint import hub, registry
from .checkpoint.files import Files, Overrides
from .checkpoint.fill import describe
from .checkpoint.loader import DTYPES, Checkpoint, Loader
from .checkpoint.places import open_place
from .config.description import Generation
from .errors import ConfigError, CutShortWarning, MoshiError, clean, quit_at_once
from .machine import memory
from .machine.capacity import capacity
from .machine.ranks import Ranks
from .modules.sampling import Sampler
from .output import open_nowhere, refuse_inputs, remove_unfinished
from .text import escape_unwritable

# Results go to standard output, everything about them to standard error.
console = Console(stderr=True, highlight=False)
# Signals that end a command, and how that is told.
_ENDS = {"SIGTERM": "terminated", "SIGHUP": "the terminal was closed"}
_CHECKPOINT_FILES = (".safetensors", ".json", ".model", ".gguf", ".pt", ".bin", ".npz")


def run(main: Callable[[list[str] | None], int | None], argv: list[str] | None = None) -> NoReturn:
    """Call a command's `main` and exit: 0, 1 for a `MoshiError` or what the system refuses, 130 when interrupted, 143 when asked to terminate,
    129 when the terminal is closed. Nothing unfinished is left.
    """
    ended_by = None

    def end(signum, frame):
        nonlocal ended_by
        ended_by = _ENDS[signal.Signals(signum).name]
        raise SystemExit(128 + signum)

    show = warnings.showwarning

    def notice(message, category, *rest):
        if issubclass(category, CutShortWarning):
            say(str(message))
        else:
            show(message, category, *rest)

    warnings.showwarning = notice
    if signal.getsignal(signal.SIGINT) is quit_at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in _ENDS:
        # What was started to be deaf for it (`nohup`) stays so.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), end)
    escape_unwritable(sys.stdout)
    try:
        code = main(argv) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except MoshiError as e:
        print(f"error: {e}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = 130
    except SystemExit:
        if ended_by is not None:
            # The terminal may be gone.
            with contextlib.suppress(OSError):
                print(f"\n{ended_by}", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader of our output went away, as `| head` does.
        _drop_output()
        code = 1
    except OSError as e:
        # A folder that may not be looked into, a full disk behind `> file`; anything else is a defect of ours.
        if e.filename is None:
            if e.errno not in (errno.ENOSPC, errno.EFBIG, errno.EIO):
                raise
            _drop_output()
        print(f"error: {e.filename or 'standard output'} cannot be used: {e.strerror}.", file=sys.stderr)
        code = 1
    except MemoryError:
        print("error: out of memory. Pack the weights (-q 4) or close other programs.", file=sys.stderr)
        code = 1
    finally:
        remove_unfinished()
    sys.exit(code)


def _drop_output() -> None:
    """What is still buffered for standard output would fail again at exit."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError, MoshiError):
            os.dup2(open_nowhere(), sys.stdout.fileno())


def refuse_overwriting(
    args: argparse.Namespace, outputs: Iterable[str | Path | None] = (), made: Iterable[Path] = ()
) -> None:
    """Refuse an output that is also another one, or a file that any other argument names: a recording, a voice, part of a checkpoint.

    `outputs` are named by arguments; names in `made` are made up, for a folder.
    """
    wanted = [str(path) for path in outputs if path is not None]
    named = [str(v) for value in vars(args).values() for v in (value if isinstance(value, list) else [value])]
    for path in wanted:
        # Once each: whoever names it again means an input.
        if path in named:
            named.remove(path)
    inputs = [name for name in named if os.path.isfile(name)]
    for folder in filter(os.path.isdir, named):
        inputs += [entry.path for entry in os.scandir(folder) if entry.name.endswith(_CHECKPOINT_FILES)]
    refuse_inputs([*wanted, *made], inputs)


def add_checkpoint_arguments(
    parser: argparse.ArgumentParser, demo: bool = False, default: str = registry.DEFAULT_NAME
) -> None:
    """`demo`: the command can run the demo of its kind of model, and has a flag for it. `default`: the short name of what it
    runs else."""
    parser.set_defaults(command=parser.prog.rpartition(".")[2])
    group = parser.add_argument_group("checkpoint")
    if demo:
        name = registry.demo_of(default)
        group.add_argument(
            "--demo",
            dest="model",
            action="store_const",
            const=str(registry.DEMOS[name]),
            help=f"the small model inside the package, as --model {name}: no download, see docs/demo-model.md",
        )
    group.add_argument(
        "--model", metavar="DIR|NAME", help="local checkpoint folder, or a short name: see python -m moshi_mlx.models"
    )
    group.add_argument("--hf-repo", metavar="REPO", help=f"Hub repository (default: {default}, as --model {default})")
    group.add_argument(
        "-q",
        "--quantized",
        type=int,
        choices=[4, 8, AS_PUBLISHED],
        help="bits per weight: chooses among those published, or packs dense weights while they load; 16 takes them as they are "
        "(default: for a short name what suits this machine, else what the files hold)",
    )
    group.add_argument("--moshi-weights", "--moshi-weight", metavar="FILE", help="language model weights")
    group.add_argument("--mimi-weights", "--mimi-weight", metavar="FILE", help="codec weights")
    group.add_argument("--tokenizer", metavar="FILE", help="sentencepiece model, or a tokenizer.json")
    group.add_argument("--lm-config", "--config", dest="lm_config", metavar="FILE", help="config.json to use instead")
    group.add_argument("--lora", metavar="FILE", help="low-rank adapter to apply: its file, or the folder it came in")
    group.add_argument(
        "--lora-scale", type=float, metavar="X", help="strength of the adapter (default: what its folder says, else 2)"
    )
    group.add_argument(
        "--dtype",
        choices=sorted(DTYPES),
        help="type of activations and dense weights (default: bf16 on a GPU, f32 on a CPU)",
    )
    group.add_argument(
        "--kv-bits",
        type=int,
        choices=[4, 8],
        help="store keys and values packed, for long conversations on small machines",
    )
    group.add_argument(
        "--context", type=_seconds, metavar="SECONDS", help="bound the attention window to save memory and time"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temp",
        type=temperature,
        help="temperature of audio, and of text unless --text-temp is given (default: the checkpoint's)",
    )
    group.add_argument("--text-temp", type=temperature, help="temperature of text")
    group.add_argument("--top-k", type=_count, help="audio tokens to choose from, 0 for all")
    group.add_argument("--text-top-k", type=_count, help="text tokens to choose from, 0 for all")
    group.add_argument("--greedy", action="store_true", help="always take the most probable token")
    group.add_argument("--seed", type=int, default=299792458, help="seed of the random draws (default: %(default)s)")
    group.add_argument(
        "--cfg-coef", type=_number, default=1.0, help="guidance coefficient, for models trained with conditions"
    )


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Voice and role of PersonaPlex; `Session` takes both as `voice` and `text_prompt`."""
    group = parser.add_argument_group("PersonaPlex")
    group.add_argument(
        "--voice",
        metavar="NAME|FILE",
        help="voice of the reply: a published one (NATF2), a .safetensors or .pt file, a recording",
    )
    group.add_argument(
        "--text-prompt", metavar="TEXT", help='role of the model; "" for none (default: a friendly teacher)'
    )


def _number(text: str) -> float:
    """A finite number, as argparse wants it told."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def temperature(text: str) -> float:
    value = _number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a temperature; expected 0 or more")
    return value


def _count(text: str) -> int:
    value = _number(text)
    if value < 0 or value != int(value):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 0")
    return int(value)


def sample_rate(text: str) -> int:
    """Samples a second, of `--raw RATE`."""
    value = _count(text)
    if not 1000 <= value <= 768_000:
        raise argparse.ArgumentTypeError(f"{text} is not a rate of 1000 to 768000 samples a second")
    return value


def add_raw_format(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--raw-format",
        choices=sorted(RAW_FORMATS),
        default="s16le",
        help="samples of sound without a header: 16-bit integers or 32-bit floats (default: %(default)s)",
    )


def _seconds(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def samplers(args: argparse.Namespace, defaults: Generation) -> tuple[Sampler, Sampler]:
    """Text and audio samplers: what the flags say, else what the checkpoint ships with."""
    text_temp = first(args.text_temp, args.temp, defaults.temp_text)
    temp = first(args.temp, defaults.temp)
    if args.greedy:
        text_temp = temp = 0.0
    text = Sampler(temp=text_temp, top_p=0, top_k=first(args.text_top_k, defaults.top_k_text))
    return text, Sampler(temp=temp, top_p=0, top_k=first(args.top_k, defaults.top_k))


def first(*values):
    """The first value that is not None."""
    return next((v for v in values if v is not None), None)


# Kinds of models that hold a dialogue, or translate one side of it.
TALKERS = ("moshi", "personaplex", "hibiki")
# `-q` of those who want the weights as they are published.
AS_PUBLISHED = 16


def check_checkpoint(args: argparse.Namespace, kinds: Sequence[str], default: str = registry.DEFAULT_NAME) -> None:
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
    if not (args.model or args.hf_repo):
        return None, None, None if args.moshi_weights and args.lm_config else default
    name = registry.short_name(args.model, args.hf_repo)
    return (None, None, name) if name is not None else (args.model, args.hf_repo, None)


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
        raise ConfigError(registry.wrong_kind(files.source, kind, kinds, command))


def load(
    args: argparse.Namespace,
    *,
    kinds: Sequence[str] = TALKERS,
    default: str = registry.DEFAULT_NAME,
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
        return loader.load(lambda done, total: bar.update(task, completed=done, total=total))


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
    for note in loader.notes:
        say(f"note: {note}")
    say(f"memory: needs {memory.gigabytes(need.total)}, {memory.gigabytes(memory.available_bytes())} available")


def share(names: Sequence[str]) -> Ranks:
    """The work on `names`, shared with the other ranks where MLX's launcher started several."""
    return Ranks(names, lambda text: print(f"error: {text}.", file=sys.stderr, flush=True))


def say(text: str) -> None:
    """One line about the work, as it is: no markup, no wrapping."""
    console.print(clean(text), markup=False, soft_wrap=True)
