"""The listening sockets: bound before a model is loaded, opened when it can answer, and bounds on who comes."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from ..errors import InputError

MOST_CONNECTIONS = 200
IDLE_SECONDS = 15.0
ANY = ("0.0.0.0", "::")


class Door:
    """Sockets of `host` (None: loopback) at `port` (0: any free one). Raises `InputError` for what cannot be listened at."""

    def __init__(self, host: str | None, port: int, tls: ssl.SSLContext | None = None):
        self.tls = tls
        self.idle_seconds, self.most = IDLE_SECONDS, MOST_CONNECTIONS
        # Connections with a request under way, talks among them.
        self.busy: set[RequestHandler] = set()
        self._servers: list[asyncio.Server] = []
        self.sockets = _bind(host, port)
        self.port: int = self.sockets[0].getsockname()[1]

    async def open(self, server: web.Server, line: Callable[[], RequestHandler]) -> None:
        """Begin to answer. `line()` makes a connection of `server`."""
        loop = asyncio.get_running_loop()

        def admit() -> RequestHandler:
            # The one that has waited longest without a request makes room.
            idle = [c for c in server.connections if c not in self.busy]
            for connection in idle[: len(server.connections) + 1 - self.most]:
                connection.force_close()
            return line()

        for sock in self.sockets:
            self._servers.append(await loop.create_server(admit, sock=sock, ssl=self.tls, backlog=128))

    def close(self) -> None:
        for server in self._servers:
            server.close()
        for sock in self.sockets:
            sock.close()


def is_loopback(host: str | None) -> bool:
    """Whether nobody but this machine can ask at `host`."""
    return host is None or all(ipaddress.ip_address(a).is_loopback for _, a in _addresses(host))


def _addresses(host: str | None) -> list[tuple[socket.AddressFamily, str]]:
    if host is None:
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError):
        raise InputError(
            f"--host {host} is no address of this machine; 127.0.0.1 is, and 0.0.0.0 is every one."
        ) from None
    known: dict[str, socket.AddressFamily] = {}
    for family, _, _, _, address in found:
        known.setdefault(str(address[0]).partition("%")[0], family)
    return [(family, address) for address, family in known.items()]


def _bind(host: str | None, port: int) -> list[socket.socket]:
    if not 0 <= port <= 65535:
        raise InputError(f"--port should be from 0 to 65535, found {port}.")
    bound: list[socket.socket] = []
    addresses = _addresses(host)
    try:
        for family, address in addresses:
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((address, port))
            except OSError as e:
                # Not every machine has both families.
                if e.errno == errno.EADDRNOTAVAIL and len(addresses) > 1:
                    bound.pop().close()
                    continue
                raise InputError(_refused(address, port, e)) from None
            port = sock.getsockname()[1]
    except InputError:
        for sock in bound:
            sock.close()
        raise
    if not bound:
        raise InputError(f"this machine has no address {host or '127.0.0.1'} to listen at.")
    return bound


def _refused(address: str, port: int, e: OSError) -> str:
    if e.errno == errno.EADDRINUSE:
        return f"port {port} is taken by another program; choose one with --port, or 0 for any that is free."
    if e.errno == errno.EADDRNOTAVAIL:
        return f"--host {address} is no address of this machine; 127.0.0.1 is, and 0.0.0.0 is every one."
    if e.errno == errno.EACCES:
        return f"port {port} is reserved for the system; choose one above 1023 with --port."
    return f"{address}:{port} cannot be listened at: {e.strerror}."


def tls_context(folder: str) -> ssl.SSLContext:
    """A server's context from `cert.pem` and `key.pem` in `folder`."""
    names = [Path(folder) / n for n in ("cert.pem", "key.pem")]
    for path in names:
        if not path.is_file():
            raise InputError(
                f"--ssl expects cert.pem and key.pem in {folder}; {path.name} is not there (mkcert makes both)."
            )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(*map(str, names))
    except (ssl.SSLError, OSError) as e:
        raise InputError(
            f"cert.pem and key.pem in {folder} cannot be used: {getattr(e, 'reason', None) or e}."
        ) from None
    return context


def lan_address() -> str | None:
    """The address of this machine in its network, None without one. Nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return str(probe.getsockname()[0])
