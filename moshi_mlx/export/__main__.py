"""`python -m moshi_mlx.export MODEL DIR`: a model as a folder that runs without Python, by the library in `native/` (docs/native.md)."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from .. import commands
from ..checkpoint.files import Files
from ..checkpoint.loader import Checkpoint
from ..errors import InputError
from ..machine.memory import gigabytes
from ..session import conversation_file
from ..session.voices import Voice
from .codec import codec_plan
from .folder import check_destination, write
from .plan import Plan
from .sampler import MAX_TOP_K
from .talk import TalkFunctions, prompts_of


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m moshi_mlx.export", description=__doc__)
    p.add_argument(
        "names",
        nargs="+",
        metavar="[MODEL] DIR",
        help="what to export: a checkpoint's folder, a short name or a Hub repository (or --model, --hf-repo, --demo), and the new folder",
    )
    p.add_argument("--codec", action="store_true", help="only Mimi, the codec of MODEL: encoder and decoder")
    p.add_argument(
        "--capacities",
        type=_numbers,
        metavar="N,N",
        help="sizes of the key/value rings before the window's own, in frames (default: 256, doubling); fewer make a smaller folder",
    )
    p.add_argument(
        "--max-top-k",
        type=int,
        default=MAX_TOP_K,
        metavar="K",
        help="largest top-k of long rows, such as text, that may be asked for later (default: %(default)s)",
    )
    p.add_argument(
        "--condition",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a condition of the model (default for Hibiki: description=very_good)",
    )
    commands.add_checkpoint_arguments(p, demo=True)
    group = p.add_argument_group("PersonaPlex")
    group.add_argument(
        "--voice", action="append", default=[], metavar="NAME|FILE", help="a voice to begin with; several may be given"
    )
    group.add_argument("--text-prompt", metavar="TEXT", help='role of the model; "" for none')
    return p


def _numbers(text: str) -> list[int]:
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 256,1024") from None


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = parser()
    args = p.parse_args(argv)
    named = args.model is not None or args.hf_repo is not None
    if len(args.names) != (1 if named else 2):
        p.error("expected MODEL DIR" + (", of which MODEL is given by an option already" if named else ""))
    if not named:
        model = args.names[0]
        is_repository = "/" in model and not Path(model).exists() and not model.startswith((".", "/", "~"))
        args.model, args.hf_repo = (None, model) if is_repository else (model, None)
    args.directory = Path(args.names[-1])
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if args.max_top_k < 1:
        raise InputError(f"--max-top-k should be at least 1, found {args.max_top_k}.")
    conditions = _conditions(args.condition)
    check_destination(args.directory)

    loaded = commands.load(args, kinds=(*commands.TALKERS, "stt", "tts"), check=_refuse_speakers)
    command = ["python", "-m", "moshi_mlx.export", *(sys.argv[1:] if argv is None else argv)]
    plan = make_plan(
        loaded, command, codec=args.codec, kv_bits=args.kv_bits, conditions=conditions, capacities=args.capacities,
        max_top_k=args.max_top_k, voices=args.voice, text_prompt=args.text_prompt,
    )  # fmt: skip
    write(plan, args.directory)
    size = sum(f.stat().st_size for f in args.directory.iterdir())
    commands.say(
        f"wrote {args.directory}, {gigabytes(size)}, for the {mx.default_device().type.name} by MLX {mx.__version__}"
    )
    return 0


def _refuse_speakers(files: Files) -> None:
    if files.config.tts is not None:
        raise InputError(
            f"{files.source} is a text-to-speech model: its script is followed outside of the frame, which a folder cannot hold; "
            "python -m moshi_mlx.run_tts speaks with it."
        )


def _conditions(given: Sequence[str]) -> dict[str, str]:
    pairs = [condition.partition("=") for condition in given]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise InputError(f"a condition is given as NAME=VALUE, found {name + equals + value!r}.")
    return {name: value for name, _, value in pairs}


def make_plan(
    loaded: Checkpoint,
    command: Sequence[str] = (),
    *,
    codec: bool = False,
    kv_bits: int | None = None,
    conditions: dict[str, str] | None = None,
    capacities: Sequence[int] | None = None,
    max_top_k: int = MAX_TOP_K,
    voices: Sequence[str | Path | Voice] = (),
    text_prompt: str | None = None,
) -> Plan:
    """What the folder of a loaded checkpoint holds; `command`: what it says that it was made by."""
    if codec:
        assert loaded.mimi is not None
        plan = codec_plan(loaded.mimi)
    else:
        prompts = prompts_of(loaded, voices, text_prompt)
        talk = TalkFunctions(
            loaded, kv_bits=kv_bits, conditions=conditions, capacities=capacities, max_top_k=max_top_k
        )  # fmt: skip
        plan = talk.plan(prompts)
    files = loaded.files
    model = {
        "type": "codec" if codec else files.config.model_type,
        "source": files.source,
        "license": files.licence,
        "precision": loaded.precision,
        "dtype": str(loaded.lm.dtype).removeprefix("mlx.core."),
    }
    conversation = {"format": conversation_file.FORMAT, "model": loaded.fingerprint}
    facts = {"model": model, **plan.facts, "conversation": conversation}
    return replace(plan, facts=facts, about=about(loaded, command))


def about(loaded: Checkpoint, command: Sequence[str]) -> str:
    """The README of the folder: where it comes from and under which terms."""
    files = loaded.files
    return (
        f"# {files.source}, as an exported frame\n\n"
        f"Made by {f'`{shlex.join(command)}`' if command else 'moshi_mlx'} with MLX {mx.__version__}, for the {mx.default_device().type.name}.\n"
        "It runs with the library in `native/` of moshi_mlx and that version of MLX; another version needs it made anew.\n\n"
        f"Weights: {files.source}. Licence: {files.licence or 'see the model card'}. "
        "An app that carries them has to say so where their licence asks for attribution.\n"
    )


if __name__ == "__main__":
    commands.run(main)
