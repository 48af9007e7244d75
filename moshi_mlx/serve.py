"""`python -m moshi_mlx.serve`: talk, speech to text and text to speech for other programs, on one port.

    python -m moshi_mlx.serve --stt --tts                 # for Unmute and the scripts of delayed-streams-modeling
    python -m moshi_mlx.serve --stt stt-2.6b --rows 4     # any model by its name or folder
    python -m moshi_mlx.serve --talk --stt --tts          # everything, the page included

Which program connects how: docs/server.md.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from . import commands
from .checkpoint import registry
from .checkpoint.files import Files
from .checkpoint.loader import Checkpoint
from .commands import console, say
from .engine.model_thread import ModelThread
from .errors import InputError
from .live.warmup import StepTimes
from .machine.capacity import capacity
from .machine.serving import rows_in_time, rows_that_fit

try:
    from .server import app, hosting, log, making
    from .server.guard import Rules
    from .server.making import Running
    from .server.services import STT, TALK, TTS, Service, Services
    from .server.talks import Defaults, Talks
except ModuleNotFoundError as e:
    if e.name not in ("aiohttp", "sphn", "msgpack"):
        raise
    raise SystemExit(f"error: the server needs {e.name}: pip install '.[server]' in the clone of moshi_mlx") from None

FRAME_MS = 80.0
# What each kind is by default, the models it runs, and what it is called.
KINDS = {
    TALK: (registry.DEFAULT_NAME, commands.TALKERS, "talk with it, over /api/chat and the page"),
    STT: (registry.DEFAULT_STT, ("stt",), "speech to text"),
    TTS: (registry.DEFAULT_TTS, ("tts",), "text to speech"),
}
PRECISION = ("quantized", "dtype", "kv_bits", "context")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m moshi_mlx.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    models = p.add_argument_group("models", "one or more of three, each a folder or a short name")
    for kind, (default, _, what) in KINDS.items():
        models.add_argument(
            f"--{kind}", nargs="?", const=default, metavar="NAME", help=f"{what} (without a name: {default})"
        )
    models.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help="clients of each kind served at once (default: what this machine can, up to 8)",
    )
    models.add_argument("--voice", metavar="NAME|FILE", help="the voice of who names none that is known")
    models.add_argument(
        "--voice-repo",
        metavar="REPO",
        help="folder or Hub repository of voices (default: the checkpoint's, else Kyutai's)",
    )
    models.add_argument("--seed", type=int, help="seed of every talk (default: another for each)")
    models.add_argument("--no-compile", dest="compile", action="store_false", help="run every operation by itself")
    hosting.add_arguments(p.add_argument_group("server"))
    memory = p.add_argument_group("memory")
    for action in _checkpoint_parser(registry.DEFAULT_NAME)._actions:
        if action.dest in PRECISION:
            memory._add_action(action)
    return p


def _checkpoint_parser(default: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="moshi_mlx.serve", add_help=False)
    commands.add_checkpoint_arguments(p, default=default)
    commands.add_sampling_arguments(p)
    p.set_defaults(seed=None)
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    named = {kind: name for kind in KINDS if (name := getattr(args, kind)) is not None}
    if not named:
        raise InputError("name what should be served: --talk, --stt and --tts, each alone or with a model.")
    if args.rows is not None and args.rows < 1:
        raise InputError(f"--rows should be 1 or more, found {args.rows}.")
    for kind in named:
        commands.check_checkpoint(arguments_of(args, kind), KINDS[kind][1], KINDS[kind][0])
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
    own.model, own.compile, own.seed = getattr(args, kind), args.compile, args.seed
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
            say("this machine's steps take all of a frame: more clients at once would hear gaps")
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
    default, kinds, _ = KINDS[kind]

    def check(files: Files) -> None:
        if kind == TTS:
            voices_of(args, files)

    loaded = commands.load(arguments_of(args, kind), kinds=kinds, default=default, batch=rows, check=check)
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
                samplers = commands.samplers(arguments_of(args, kind), checkpoint.config.generation)
                talks = Talks(checkpoint, Defaults(*samplers, args.seed))
                made[kind], times[kind] = making.talking(name, talks, rows, running)
                about = talks.about(rows, False, getattr(args, kind) == registry.DEMO_NAME)
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
    advice = ", ".join([*fewer, "a smaller precision (-q 4) or --context 60"])
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
    if rules.token and not services.talk:
        lines.append(f"clients need the key {rules.token}")
    return [*lines, "Ctrl-C ends it"]


if __name__ == "__main__":
    commands.run(main)
