"""The work of `python -m moshi_mlx.serve`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..checkpoint.files import Files, require_tokenizer
from ..checkpoint.loader import Checkpoint
from ..checkpoint.places import repository_of
from ..checkpoint.published import DEFAULT_NAME, DEMO_NAME
from ..defaults import STT_MODEL, TTS_MODEL
from ..engine.model_thread import ModelThread
from ..errors import InputError
from ..live.warmup import StepTimes
from ..machine.capacity import capacity
from ..machine.serving import rows_in_time, rows_that_fit
from .flags import TALKERS, Parser, add_checkpoint_arguments, add_sampling_arguments
from .loading import check_checkpoint, load, samplers
from .running import server_packages
from .telling import console, say

with server_packages():
    from ..server import app, hosting, log, making
    from ..server.guard import Rules
    from ..server.making import Running
    from ..server.services import STT, TALK, TTS, Service, Services
    from ..server.talks import Defaults, Talks

FRAME_MS = 80.0
# The model of each kind where none is named, and the models that it runs.
KINDS = {TALK: (DEFAULT_NAME, TALKERS), STT: (STT_MODEL, ("stt",)), TTS: (TTS_MODEL, ("tts",))}
PRECISION = ("quantized", "dtype", "kv_bits", "context")


def _checkpoint_parser(default: str) -> argparse.ArgumentParser:
    p = Parser(prog="moshi_mlx.serve", add_help=False)
    add_checkpoint_arguments(p, default=default)
    add_sampling_arguments(p)
    p.set_defaults(seed=None)
    return p


def run(args: argparse.Namespace) -> int:
    """The command."""
    named = {kind: name for kind in KINDS if (name := getattr(args, kind)) is not None}
    if not named:
        raise InputError("name what should be served: --talk, --stt and --tts, each alone or with a model.")
    if args.rows is not None and args.rows < 1:
        raise InputError(f"--rows should be 1 or more, found {args.rows}.")
    for kind in named:
        check_checkpoint(arguments_of(args, kind), KINDS[kind][1], KINDS[kind][0])
    static, rules = hosting.page_folder(args.static), hosting.rules_of(args, say)
    with contextlib.ExitStack() as stack:
        # Taken before a model is loaded: a port in use is told at once.
        entrance = hosting.open_door(args, rules)
        stack.callback(entrance.close)
        log.to_standard_error()
        offer = make_services(args, list(named), stack)
        for line in verdict(offer.times, offer.services):
            say(line)
        application = app.make_app(offer.services, rules, offer.about, static if TALK in named else None)

        def ready() -> None:
            for line in invitation(args, rules, offer.services):
                say(line)

        return asyncio.run(hosting.serve(application, entrance, ready, say))


def arguments_of(args: argparse.Namespace, kind: str) -> argparse.Namespace:
    """The arguments with which the model of a kind is loaded."""
    own = _checkpoint_parser(KINDS[kind][0]).parse_args([])
    name = getattr(args, kind)
    own.hf_repo = repository_of(name)
    own.model = None if own.hf_repo else name
    own.compile, own.seed = args.compile, args.seed
    for name in PRECISION:
        setattr(own, name, getattr(args, name))
    return own


@dataclass(frozen=True)
class Offer:
    """What is served, the steps by kind, and what the page is told of the talk."""

    services: Services
    times: dict[str, StepTimes]
    about: app.About | None


def make_services(args: argparse.Namespace, kinds: Sequence[str], stack: contextlib.ExitStack) -> Offer:
    """Everything loaded, traced and warm."""
    thread = stack.enter_context(ModelThread())
    running = Running(thread, stack, args.compile, args.kv_bits)
    most = args.rows or 1
    loaded = thread.run(lambda: {kind: _load(args, kind, most) for kind in kinds})
    rows = args.rows or fitting_rows(list(loaded.values()), args.kv_bits)
    if rows is None:
        # How fast this machine is nobody knows: a row of each is tried first.
        with contextlib.ExitStack() as trial:
            tried = _make_all(args, loaded, 1, Running(thread, trial, args.compile, args.kv_bits))
            rows = rows_in_time([t.p95 / 1000 for t in tried.times.values()])
            say(f"rows: {rows} of each kind, by a step of one row (--rows chooses)")
            if rows == 1:
                stack.push(trial.pop_all())
                return tried
    return _make_all(args, loaded, rows, running)


def fitting_rows(loaded: Sequence[Checkpoint], kv_bits: int | None) -> int | None:
    """Rows of each that this machine's memory and bandwidth allow, None where the bandwidth is not known."""
    machine = capacity()
    rows = rows_that_fit([making.cost_of(each, kv_bits) for each in loaded], machine)
    if machine.bandwidth is None:
        return None if rows else 1
    say(f"rows: {max(rows, 1)} of each kind, by this machine's memory and bandwidth (--rows chooses)")
    return max(rows, 1)


def _load(args: argparse.Namespace, kind: str, rows: int) -> Checkpoint:
    default, kinds = KINDS[kind]

    def check(files: Files) -> None:
        if kind != TALK:
            require_tokenizer(files)
        if kind == TTS:
            voices_of(args, files)

    loaded = load(arguments_of(args, kind), kinds=kinds, default=default, batch=rows, check=check)
    if kind == TALK:
        making.refuse_silent(loaded)
    return loaded


def voices_of(args: argparse.Namespace, files: Files) -> making.Voices:
    return making.voices_of(files, args.voice, args.voice_repo, say)


def _make_all(args: argparse.Namespace, loaded: dict[str, Checkpoint], rows: int, running: Running) -> Offer:
    made: dict[str, Service] = {}
    times: dict[str, StepTimes] = {}
    about = None
    with console.status("warming up") if console.is_terminal else contextlib.nullcontext():
        for kind, checkpoint in loaded.items():
            name = making.shown_name(getattr(args, kind))
            if kind == TALK:
                sampling = samplers(arguments_of(args, kind), checkpoint.config.generation)
                talks = Talks(checkpoint, Defaults(*sampling, args.seed))
                made[kind], times[kind] = making.talking(name, talks, rows, running)
                about = talks.about(rows, False, getattr(args, kind) == DEMO_NAME)
            elif kind == STT:
                made[kind], times[kind] = making.hearing(name, checkpoint, rows, running)
            else:
                voices = voices_of(args, checkpoint.files)
                made[kind], times[kind] = making.speaking(name, checkpoint, rows, running, voices)
    return Offer(Services(**made), times, about)  # type: ignore[arg-type]


def verdict(times: dict[str, StepTimes], services: Services) -> list[str]:
    """Whether all models keep up together, with every row busy."""
    rows = next(iter(services)).scheduler.rows
    parts = [f"{kind} {t.p50:.1f} ms per frame (p95 {t.p95:.1f})" for kind, t in times.items()]
    together = sum(t.p95 for t in times.values())
    busy = "" if rows == 1 else f" with all {rows} rows of each"
    said = f"{', '.join(parts)} of {FRAME_MS:.0f}{busy}"
    if together <= FRAME_MS:
        return [f"{said}: keeps up" if len(parts) == 1 else f"{said}: they keep up together"]
    fewer = ["fewer --rows"] if rows > 1 else []
    fewer += ["one kind less"] if len(parts) > 1 else []
    advice = ", ".join([*fewer, "a smaller precision (down to -q 4) or --context 60"])
    if len(parts) == 1:
        return [f"{said}: will not keep up when all are busy, clients will hear gaps and wait; try {advice}"]
    order = " before ".join({TALK: "talk", STT: "speech to text", TTS: "text to speech"}[kind] for kind in times)
    return [f"{said}: will not keep up together when all are busy; {order} has its turn first. Try {advice}"]


def invitation(args: argparse.Namespace, rules: Rules, services: Services) -> list[str]:
    """Where it is and what is there."""
    lines = [f"talk at {link}" for link in hosting.links(args, rules)] if services.talk else []
    address = hosting.addresses(args, rules)[0]
    sockets = address.replace("http", "ws", 1)
    if services.stt:
        lines.append(f"speech to text at {sockets}/api/asr-streaming")
    if services.tts:
        lines.append(f"text to speech at {sockets}/api/tts_streaming")
    lines.append(f"OpenAI's clients: base URL {address}/v1")
    if rules.token and not services.talk:
        lines.append(f"clients need the key {rules.token}")
    return [*lines, "Ctrl-C ends it"]
