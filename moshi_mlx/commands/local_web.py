"""The work of `python -m moshi_mlx.local_web`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path

from ..checkpoint.published import DEMO_FOLDER
from ..engine.kind import Kind
from ..engine.model_thread import ModelThread
from ..errors import InputError
from ..session.personaplex import check_prompt
from .loading import load, samplers
from .running import server_packages
from .telling import console, say

with server_packages():
    from ..server import app, door, guard, hosting, log, making, recorded
    from ..server.making import Running
    from ..server.services import Services, Talking
    from ..server.talks import Defaults, Talks
    from ..server.warmup import StepTimes

FRAME_MS = 80.0


def run(args: argparse.Namespace, wrap: Callable[[Kind], Kind] = lambda kind: kind) -> int:
    """The command. `wrap` puts something around the model, on its thread."""
    if args.rows < 1:
        raise InputError(f"--rows should be 1 or more, found {args.rows}.")
    static = hosting.page_folder(args.static)
    folder = recorded.check(args.record) if args.record is not None else None
    rules = hosting.rules_of(args, say)
    with contextlib.ExitStack() as stack:
        # Taken before a model is loaded: a port in use is told at once.
        entrance = hosting.open_door(args, rules)
        stack.callback(entrance.close)
        log.to_standard_error()
        talk, about, times = _load(args, folder, wrap, stack)
        say(verdict(times, args.rows))
        application = app.make_app(Services(talk), rules, about, static)

        def ready() -> None:
            for line in invitation(args, rules):
                say(line)
            if not args.no_browser:
                link = hosting.links(args, rules)[0]
                # Some browsers keep the caller until their window is closed.
                threading.Thread(target=webbrowser.open, args=(link,), daemon=True).start()

        return asyncio.run(hosting.serve(application, entrance, ready, say))


def _load(
    args: argparse.Namespace, folder: Path | None, wrap: Callable[[Kind], Kind], stack: contextlib.ExitStack
) -> tuple[Talking, app.About, StepTimes]:
    """The model on its thread, what the page is told of it, and the time of its steps."""
    thread = stack.enter_context(ModelThread())
    loaded = thread.run(
        lambda: load(args, batch=args.rows, check=lambda files: check_prompt(files, args.voice, args.text_prompt))
    )
    making.refuse_silent(loaded)
    sampling = samplers(args, loaded.config.generation)
    talks = Talks(loaded, Defaults(*sampling, args.seed, args.voice, args.text_prompt))
    about = talks.about(args.rows, folder is not None, args.model == str(DEMO_FOLDER))
    running = Running(thread, stack, args.compile, args.kv_bits)
    with console.status("warming up") if console.is_terminal else contextlib.nullcontext():
        talk, times = making.talking(
            making.shown_name(args.model or args.hf_repo), talks, args.rows, running, args.cfg_coef, folder, wrap
        )
    return talk, about, times


def invitation(args: argparse.Namespace, rules: guard.Rules) -> list[str]:
    """What to do now, in words."""
    lines = [f"talk at {link}" for link in hosting.links(args, rules)]
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
    return f"{said}: will not keep up, some of what users say will be dropped; try {fewer}a smaller precision (down to -q 4) or --context 60"
