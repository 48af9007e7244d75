"""Arguments that commands share, and what cannot be among them. Nothing that takes long is imported here: `--help` answers at once."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from ..checkpoint.published import DEFAULT_NAME, DEMOS
from ..defaults import DTYPES, RAW_FORMATS
from ..errors import LONGEST_MESSAGE, clean
from ..output import refuse_inputs

# Kinds of models that hold a dialogue, or translate one side of it.
TALKERS = ("moshi", "personaplex", "hibiki")
# Where a server listens.
PORT = 8998
# `-q` of those who want the weights as they are published.
AS_PUBLISHED = 16
_CHECKPOINT_FILES = (".safetensors", ".json", ".model", ".gguf", ".pt", ".bin", ".npz")


class Parser(argparse.ArgumentParser):
    """Arguments of a command; names stand before, between and after flags. What it quotes of a wrong one may be a file's name: no terminal
    obeys it.
    """

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        given = sys.argv[1:] if args is None else list(args)
        # What follows `--` is names, and argparse forgets that when they may stand anywhere.
        return (super().parse_args if "--" in given else self.parse_intermixed_args)(given, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(clean(message, LONGEST_MESSAGE))


def add_checkpoint_arguments(
    parser: argparse.ArgumentParser, demo: str | None = None, default: str = DEFAULT_NAME
) -> None:
    """`demo`: the demo model that the command can run, and has a flag for. `default`: the short name of what it runs else."""
    parser.set_defaults(command=parser.prog.rpartition(".")[2])
    group = parser.add_argument_group("checkpoint")
    # Of two that were typed the last would win without a word.
    one = group.add_mutually_exclusive_group()
    if demo:
        one.add_argument(
            "--demo",
            dest="model",
            action="store_const",
            const=str(DEMOS[demo]),
            help=f"the small model inside the package, as --model {demo}: no download, see docs/demo-model.md",
        )
    one.add_argument(
        "--model", metavar="DIR|NAME", help="checkpoint folder, or a short name (python -m moshi_mlx.models lists them)"
    )
    one.add_argument("--hf-repo", metavar="REPO", help=f"Hub repository (default: that of --model {default})")
    group.add_argument("--moshi-weights", "--moshi-weight", metavar="FILE", help="language model weights")
    group.add_argument("--mimi-weights", "--mimi-weight", metavar="FILE", help="codec weights")
    group.add_argument("--tokenizer", metavar="FILE", help="sentencepiece model, or a tokenizer.json")
    group.add_argument("--lm-config", "--config", dest="lm_config", metavar="FILE", help="config.json to use instead")
    group.add_argument("--lora", metavar="FILE", help="low-rank adapter to apply: its file or folder")
    group.add_argument(
        "--lora-scale",
        type=float,
        metavar="X",
        help="strength of the adapter (default: from its config.json, otherwise 2)",
    )
    add_precision_arguments(group)


def add_precision_arguments(group: argparse._ActionsContainer) -> None:
    """How a checkpoint is kept in memory."""
    group.add_argument(
        "-q",
        "--quantized",
        type=int,
        choices=[4, 8, AS_PUBLISHED],
        help="bits per weight: chooses a published precision, or packs dense weights while they load; 16 takes the published weights as they are "
        "(default: for a short name what suits this machine, otherwise as stored)",
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
        help="store keys and values in 4 or 8 bits, for long conversations on small machines",
    )
    group.add_argument(
        "--context", type=_seconds, metavar="SECONDS", help="shorten the attention window, to save memory and time"
    )


def add_sampling_arguments(
    parser: argparse.ArgumentParser, seed: int | None = 299792458, temp: str = "the checkpoint's"
) -> None:
    """`seed`: that of the draws where none is given; None for another one each time. `temp` says whose the temperature is then."""
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--temp",
        type=temperature,
        metavar="X",
        help=f"temperature of audio, and of text unless --text-temp is given (default: {temp})",
    )
    group.add_argument("--text-temp", type=temperature, metavar="X", help="temperature of text")
    group.add_argument(
        "--top-k", type=_count, metavar="K", help="sample from the K most probable audio tokens, 0 for all"
    )
    group.add_argument(
        "--text-top-k", type=_count, metavar="K", help="sample from the K most probable text tokens, 0 for all"
    )
    group.add_argument("--greedy", action="store_true", help="always take the most probable token")
    default = "%(default)s" if seed is not None else "a new one for each conversation"
    group.add_argument("--seed", type=int, default=seed, metavar="N", help=f"random seed (default: {default})")
    group.add_argument(
        "--cfg-coef",
        type=_number,
        default=1.0,
        metavar="X",
        help="guidance, for models trained with conditions (default: %(default)s)",
    )


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Voice and role of PersonaPlex; `Session` takes both as `voice` and `text_prompt`."""
    group = parser.add_argument_group("PersonaPlex")
    group.add_argument(
        "--voice",
        metavar="NAME|FILE",
        help="voice of the reply: a published one (NATF2), a .safetensors or .pt file, or a recording",
    )
    group.add_argument(
        "--text-prompt", metavar="TEXT", help='role of the model, "" for none (default: a friendly teacher)'
    )


def add_server_arguments(server: argparse._ActionsContainer) -> None:
    """Where to listen, and who may ask."""
    server.add_argument(
        "--host", metavar="ADDRESS", help="address to listen on (default: this machine only; 0.0.0.0: all networks)"
    )
    server.add_argument("--port", type=int, default=PORT, help="port, 0 for any free one (default: %(default)s)")
    server.add_argument(
        "--ssl", metavar="DIR", help="folder with cert.pem and key.pem, for https, which other machines need"
    )
    server.add_argument("--static", metavar="DIR", help="another page instead of the package's; none for no page")
    server.add_argument(
        "--token",
        metavar="TEXT",
        help="require this token (by default one is made when the server is open to other machines)",
    )
    server.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="allow pages of this origin, such as https://example.org; repeatable",
    )
    server.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name of this server; repeatable"
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
        help="samples of audio without a header: 16-bit integers or 32-bit floats (default: %(default)s)",
    )


def _seconds(text: str) -> float:
    value = _number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


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


def first(*values):
    """The first value that is not None."""
    return next((v for v in values if v is not None), None)
