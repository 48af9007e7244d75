"""What every command that serves has in common: its flags, who may ask, the links it prints, and serving until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import signal
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from ..errors import InputError
from . import app, door, guard, pages

TOKEN = re.compile(r"[A-Za-z0-9._~-]+", re.ASCII)
# 128 bits in the 64 letters of a token.
SHORT_TOKEN = 22
EXIT_CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


def page_folder(name: str | None) -> Path | None:
    """The folder of `--static`, None for no page. Raises `InputError`."""
    if name is None:
        return pages.PAGE_FOLDER
    if name == "none":
        return None
    path = Path(name)
    if not (path / "index.html").is_file():
        raise InputError(f"--static expects a folder with an index.html, or none; {path} has none.")
    return path


def rules_of(args: argparse.Namespace, say: Callable[[str], None]) -> guard.Rules:
    """Who may ask, by the flags. Raises `InputError`; `say` hears of a token that is easily guessed."""
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


def open_door(args: argparse.Namespace, rules: guard.Rules) -> door.Door:
    """The sockets, bound: before a model is loaded, so that a port in use is told at once."""
    entrance = door.Door(args.host, args.port, door.tls_context(args.ssl) if args.ssl else None)
    rules.port = entrance.port
    return entrance


def links(args: argparse.Namespace, rules: guard.Rules) -> list[str]:
    """Where the server is, for a browser of this machine first."""
    fragment = f"/#token={rules.token}" if rules.token else ""
    return [address + fragment for address in addresses(args, rules)]


def addresses(args: argparse.Namespace, rules: guard.Rules) -> list[str]:
    """The same without the token."""
    anywhere = args.host in door.ANY
    names = ["localhost"] if args.host is None or anywhere else [guard.host_name(args.host)]
    if anywhere and (found := door.lan_address()):
        names.append(found)
    names += [guard.host_name(n) for n in args.allow_host]
    return [f"{rules.scheme}://{name}:{rules.port}" for name in names]


async def serve(
    application: web.Application, entrance: door.Door, ready: Callable[[], object], say: Callable[[str], None]
) -> int:
    """Answer until a signal ends it; returns the exit code."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    ended: list[str] = []

    def end(name: str) -> None:
        ended.append(name)
        stop.set()

    for name in EXIT_CODES:
        loop.add_signal_handler(getattr(signal, name), end, name)
    await app.serve(application, entrance, stop, ready)
    say(f"ended by {ended[0]}")
    return EXIT_CODES[ended[0]]
