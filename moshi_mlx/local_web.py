"""`python -m moshi_mlx.local_web`: Moshi as a page in the browser, and a server for every program that speaks its protocol."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import secrets
import signal
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from . import commands
from .checkpoint import registry
from .commands import console, say
from .errors import InputError

try:
    from aiohttp import web

    from .engine.kind import Kind
    from .engine.scheduler import Scheduler
    from .server import app, door, guard, log, pages, recorded
    from .server.query import Wishes
    from .server.services import Services, Talking
    from .server.talks import Defaults, Talks
    from .server.warmup import StepTimes, warm_up
    from .session.conversations import Conversations
except ModuleNotFoundError as e:
    if e.name not in ("aiohttp", "sphn"):
        raise
    raise SystemExit(f"error: the server needs {e.name}: pip install '.[server]' in the clone of moshi_mlx") from None

PORT = 8998
FRAME_MS = 80.0
TOKEN = re.compile(r"[A-Za-z0-9._~-]+", re.ASCII)
# 128 bits in the 64 letters of a token.
SHORT_TOKEN = 22
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m moshi_mlx.local_web", description=__doc__)
    server = p.add_argument_group("server")
    server.add_argument(
        "--host", metavar="ADDRESS", help="where to listen (default: this machine only; 0.0.0.0: everywhere)"
    )
    server.add_argument("--port", type=int, default=PORT, help="0 for any that is free (default: %(default)s)")
    server.add_argument(
        "--ssl", metavar="DIR", help="folder with cert.pem and key.pem: https, which other machines need"
    )
    server.add_argument("--static", metavar="DIR", help="another page than the package's; none for no page")
    server.add_argument("--no-browser", action="store_true", help="do not open the page")
    server.add_argument(
        "--token", metavar="TEXT", help="ask for this token (off this machine one is made where none is given)"
    )
    server.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let the pages of https://example.org in; repeatable",
    )
    server.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name of this server; repeatable"
    )
    server.add_argument(
        "--rows", type=int, default=1, metavar="N", help="talks at the same time (default: %(default)s)"
    )
    server.add_argument("--record", metavar="DIR", help="keep every talk, in a folder of its own; the page says so")
    server.add_argument(
        "--steps", type=int, metavar="N", help="accepted and without effect: talks have no end of their own"
    )
    server.add_argument("--no-compile", dest="compile", action="store_false", help="run every operation by itself")
    commands.add_checkpoint_arguments(p, demo=True)
    commands.add_sampling_arguments(p)
    p.set_defaults(seed=None)
    commands.add_prompt_arguments(p)
    return p


def main(argv: list[str] | None = None, wrap: Callable[[Kind], Kind] = lambda kind: kind) -> int:
    """The command. `wrap` puts something around the model, on its thread."""
    args = parser().parse_args(argv)
    if args.rows < 1:
        raise InputError(f"--rows should be 1 or more, found {args.rows}.")
    static = _static(args.static)
    folder = recorded.check(args.record) if args.record else None
    tls = door.tls_context(args.ssl) if args.ssl else None
    rules = _rules(args)
    # Taken before the model is loaded: a port in use is told at once.
    entrance = door.Door(args.host, args.port, tls)
    rules.port = entrance.port
    log.to_standard_error()
    try:
        with contextlib.ExitStack() as stack:
            scheduler, talks, times = _load(args, folder, wrap, stack)
            say(verdict(times, args.rows))
            about = talks.about(args.rows, folder is not None, args.model == str(registry.DEMO_FOLDER))
            application = app.make_app(Services(Talking(about.model, scheduler, talks.make)), rules, about, static)
            return asyncio.run(_serve(args, application, entrance, rules))
    finally:
        entrance.close()


def _static(folder: str | None) -> Path | None:
    if folder is None:
        return pages.PAGE_FOLDER
    if folder == "none":
        return None
    path = Path(folder)
    if not (path / "index.html").is_file():
        raise InputError(f"--static expects a folder with an index.html, or none; {path} has none.")
    return path


def _rules(args: argparse.Namespace) -> guard.Rules:
    token, anywhere = args.token, args.host in door.ANY
    local = door.is_loopback(args.host)
    if token is not None and not TOKEN.fullmatch(token):
        raise InputError("--token may have letters, digits and . _ ~ - only.")
    if token is None and not local:
        token = secrets.token_urlsafe(24)
    if token is not None and not local and len(token) < SHORT_TOKEN:
        say(f"a token of {len(token)} characters can be guessed; without --token one of 32 is made")
    named = [*args.allow_host, *([args.host] if args.host and not anywhere else [])]
    return guard.Rules(
        hosts=guard.hosts(named),
        origins={guard.origin(o) for o in args.allow_origin},
        token=token,
        scheme="https" if args.ssl else "http",
        any_address=anywhere,
    )


def _load(
    args: argparse.Namespace, folder: Path | None, wrap: Callable[[Kind], Kind], stack: contextlib.ExitStack
) -> tuple[Scheduler, Talks, StepTimes]:
    """The model on its thread, what makes talks for it, and the time of its steps."""
    made: list[tuple[Talks, StepTimes]] = []

    def make() -> Kind:
        loaded = commands.load(args, batch=args.rows)
        if loaded.lm.cfg.dep_q == 0:
            raise InputError(
                f"{loaded.files.source} is a speech-to-text model, which says nothing; python -m moshi_mlx.stt writes down what it hears."
            )
        text_sampler, audio_sampler = commands.samplers(args, loaded.config.generation)
        talks = Talks(loaded, Defaults(text_sampler, audio_sampler, args.seed, args.voice, args.text_prompt))
        kind = wrap(
            Conversations(
                loaded, args.rows, text_sampler=text_sampler, audio_sampler=audio_sampler, cfg_coef=args.cfg_coef,
                compile=args.compile, kv_bits=args.kv_bits,
            )
        )  # fmt: skip
        with console.status("warming up") if console.is_terminal else contextlib.nullcontext():
            made.append((talks, warm_up(kind, talks.make(Wishes()))))
        if folder is None:
            return kind
        recording = recorded.Recorded(kind, folder)
        stack.callback(recording.close)
        return recording

    return stack.enter_context(Scheduler(make, name="model")), *made[0]


async def _serve(
    args: argparse.Namespace, application: web.Application, entrance: door.Door, rules: guard.Rules
) -> int:
    """Answer until a signal ends it; returns the exit code."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    ended: list[str] = []

    def end(name: str) -> None:
        ended.append(name)
        stop.set()

    def ready() -> None:
        for line in invitation(args, rules):
            say(line)
        if not args.no_browser:
            # Some browsers keep the caller until their window is closed.
            threading.Thread(target=webbrowser.open, args=(links(args, rules)[0],), daemon=True).start()

    for name in EXIT_CODES:
        loop.add_signal_handler(getattr(signal, name), end, name)
    await app.serve(application, entrance, stop, ready)
    say(f"ended by {ended[0]}")
    return EXIT_CODES[ended[0]]


def links(args: argparse.Namespace, rules: guard.Rules) -> list[str]:
    """Where the page is, for a browser of this machine first."""
    anywhere = args.host in door.ANY
    names = ["localhost"] if args.host is None or anywhere else [guard.host_name(args.host)]
    if anywhere and (found := door.lan_address()):
        names.append(found)
    names += [guard.host_name(n) for n in args.allow_host]
    fragment = f"/#token={rules.token}" if rules.token else ""
    return [f"{rules.scheme}://{name}:{rules.port}{fragment}" for name in names]


def invitation(args: argparse.Namespace, rules: guard.Rules) -> list[str]:
    """What to do now, in words."""
    lines = [f"talk at {link}" for link in links(args, rules)]
    if not door.is_loopback(args.host) and not args.ssl:
        lines.append(
            "other machines get no microphone without https: --ssl DIR with cert.pem and key.pem, which mkcert makes"
        )
    if args.record:
        lines.append(f"every talk is recorded in {args.record}")
    return [*lines, "Ctrl-C ends it"]


def verdict(times: StepTimes, rows: int) -> str:
    """Whether the model keeps up, with every row in a talk."""
    said = f"{times.p50:.1f} ms per frame (p95 {times.p95:.1f}) of {FRAME_MS:.0f}" + (
        f" with {rows} talks" if rows > 1 else ""
    )
    if times.p95 <= FRAME_MS:
        return f"{said}: keeps up"
    fewer = "fewer --rows, " if rows > 1 else ""
    return f"{said}: will not keep up, some of what users say will be dropped; try {fewer}a smaller precision (-q 4) or --context 60"


if __name__ == "__main__":
    commands.run(main)
