"""The work of `python -m moshi_mlx.run_helium`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import mlx.core as mx
from rich.progress import BarColumn, Progress, TextColumn

from ..checkpoint import registry
from ..errors import InputError
from ..helium import text_model
from ..machine import memory
from ..output import check_writable
from ..text_to_speech.text_sources import stdin_pieces
from .flags import first, refuse_overwriting
from .telling import console, say

DEFAULT_PROMPT = "Aujourd'hui, il est temps"


def run(args: argparse.Namespace) -> int:
    """The command."""
    check_writable("-")
    prompt = _prompt(args)
    sampler = _sampler(args)
    if args.save_quantized is not None:
        _check_save(args)
    text = _load(args)
    tokens = text.tokens(prompt)
    mx.random.seed(args.seed % 2**32)
    start, written = time.perf_counter(), 0
    if not args.only_new:
        print(prompt, end="", flush=True)
    out = text.detokenizer()
    with Progress(
        TextColumn("reading"), BarColumn(), console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        task = bar.add_task("read", total=len(tokens))
        for token in text_model.generate_tokens(
            text, tokens, args.max_tokens, sampler, lambda done, _: bar.update(task, completed=done)
        ):
            if not written:
                bar.stop()
                read, start = time.perf_counter() - start, time.perf_counter()
            written += 1
            print(out.add(token), end="", flush=True)
    print(out.finish(), flush=True)
    if not written:
        say("the model ended the text at once")
        return 0
    spent = time.perf_counter() - start
    rate = f"{(written - 1) / spent:.1f} tokens a second" if written > 1 else "one token"
    say(f"prompt: {len(tokens)} tokens in {read:.2f} s; {rate}; peak memory {memory.gigabytes(mx.get_peak_memory())}")
    if len(tokens) + written >= text.window:
        say(f"stopped at the model's window of {text.window} tokens")
    return 0


def _prompt(args: argparse.Namespace) -> str:
    if args.text is not None and args.prompt is not None:
        raise InputError("give the prompt once: as PROMPT or with --prompt.")
    prompt = first(args.text, args.prompt, DEFAULT_PROMPT)
    if prompt == "-":
        prompt = "".join(stdin_pieces())
    if not prompt.strip():
        raise InputError("the prompt is empty; write the beginning of a text for the model to continue.")
    return prompt


def _check_save(args: argparse.Namespace) -> None:
    path = Path(args.save_quantized)
    if args.quantize_bits is None:
        raise InputError("--save-quantized writes what --quantize-bits packs; give both.")
    if path.suffix != ".safetensors":
        raise InputError(f"--save-quantized: {path} should end in .safetensors.")
    check_writable(path)
    refuse_overwriting(args, [path])


def _sampler(args: argparse.Namespace):
    """mlx-lm's, or None for greedy."""
    from mlx_lm.sample_utils import make_sampler

    if not 0 <= args.temp < float("inf"):
        raise InputError(f"--temp should be 0 or more, found {args.temp}.")
    if not 0 < args.top_p <= 1:
        raise InputError(f"--top-p should be above 0 and at most 1, found {args.top_p}.")
    if args.top_k < 0:
        raise InputError(f"--top-k should be 0 or more, found {args.top_k}.")
    if args.greedy or not args.temp:
        return None
    return make_sampler(temp=args.temp, top_p=args.top_p, top_k=args.top_k)


def _load(args: argparse.Namespace) -> text_model.TextModel:
    model = args.model if args.hf_repo or args.weights else first(args.model, text_model.DEFAULT_NAME)
    for line in registry.before_download(model, args.hf_repo, None) if model or args.hf_repo else []:
        say(line)
    columns = (TextColumn("loading"), BarColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("load", total=None)
        text = text_model.load(
            args.model,
            args.hf_repo,
            weights=args.weights,
            tokenizer=args.tokenizer,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if args.quantize_bits is not None:
        text_model.quantize(text, args.quantize_bits, args.quantize_group_size)
    if args.save_quantized is not None:
        text_model.save(text, Path(args.save_quantized))
        say(f"wrote {args.save_quantized}")
    say(f"{text.source}: window of {text.window} tokens, {memory.gigabytes(memory.module_bytes(text.model))}")
    return text
