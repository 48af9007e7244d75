"""Who may ask: Host, Origin and token of every request, and the headers of every answer (docs/spec/protocol.md, "Who may ask").

A page on any site can open a socket to this machine, and by rebinding a name read plain HTTP from it; these rules are what
keeps such a page out.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from aiohttp import hdrs, web

from ..errors import InputError

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)
DEFAULT_PORTS = {"http": 80, "https": 443}
# A page can only be given its token after it has been loaded.
NEEDS_TOKEN, OPEN_TO_ALL = ("/api/", "/v1/", "/metrics"), ("/api/build_info",)
SUB_PROTOCOL = "moshi"
# Sub-protocols that are a token: ours, and OpenAI's for browsers.
TOKEN_PREFIXES = ("token.", "openai-insecure-api-key.")

HANDSHAKE = (
    hdrs.UPGRADE,
    hdrs.CONNECTION,
    hdrs.SEC_WEBSOCKET_KEY,
    hdrs.SEC_WEBSOCKET_VERSION,
    hdrs.SEC_WEBSOCKET_PROTOCOL,
)

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; worker-src 'self' blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "moshi_mlx",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def host_name(text: str) -> str:
    """A name or address as the Host header has it: small letters, IPv6 in brackets, no port. Raises `InputError`."""
    text = text.strip().lower()
    if ":" in text and not text.startswith("[") and text.count(":") > 1:
        text = f"[{text}]"
    found = HOST.fullmatch(text)
    if not found:
        raise InputError(f"a host should be a name or an address such as moshi.local, found {text!r}.")
    return found[1]


def origin(text: str) -> str:
    """An origin as browsers write it. Raises `InputError`."""
    plain = text.strip().lower().rstrip("/")
    if not ORIGIN.fullmatch(plain):
        raise InputError(
            f"an origin should be written as https://example.org or http://localhost:5173, found {text!r}."
        )
    scheme, _, rest = plain.partition("://")
    return f"{scheme}://{rest.removesuffix(f':{DEFAULT_PORTS[scheme]}')}"


@dataclass
class Rules:
    """What this server answers to. `any_address`: it listens everywhere, and each of its addresses is its name.

    `port` is known once the sockets are bound.
    """

    hosts: set[str] = field(default_factory=lambda: set(LOOPBACK_NAMES))
    origins: set[str] = field(default_factory=set)
    token: str | None = None
    scheme: str = "http"
    port: int = 0
    any_address: bool = False

    def own_origins(self, host: str) -> set[str]:
        """The origin of a page that was loaded from this server under the name `host`."""
        own = {f"{self.scheme}://{host}:{self.port}"}
        return own | {f"{self.scheme}://{host}"} if self.port == DEFAULT_PORTS[self.scheme] else own

    def refusal(self, request: web.Request) -> web.Response | None:
        """The answer to who may not ask, None for who may."""
        host = self._host(request)
        if host is None:
            return _refuse(403, "this server does not go by that name; start it with --allow-host NAME if it should.")
        origins = request.headers.getall(hdrs.ORIGIN, [])
        if origins and (len(origins) > 1 or not self._may_ask(origins[0], host)):
            return _refuse(
                403, "pages of other sites may not use this server; start it with --allow-origin ORIGIN if one should."
            )
        # aiohttp's handshake would fail over them, as if the fault were ours.
        if not all(request.headers.get(name, "").isascii() for name in HANDSHAKE):
            return _refuse(400, "the headers that open a WebSocket should be ASCII.")
        wanted = self.token is not None and needs_token(request.path) and not self.is_preflight(request)
        if wanted and not self._has_token(request):
            return _refuse(401, "this server wants the token that it printed when it was started.")
        return None

    def is_preflight(self, request: web.Request) -> bool:
        """Whether a browser asks for a page of an allowed origin if it may ask, which it does without the page's headers."""
        asks = request.method == hdrs.METH_OPTIONS and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
        return asks and request.headers.get(hdrs.ORIGIN, "").lower() in self.origins

    def _host(self, request: web.Request) -> str | None:
        """The name under which this server was asked, None where it is not one of its own."""
        sent = request.headers.getall(hdrs.HOST, [])
        found = HOST.fullmatch(sent[0].lower()) if len(sent) == 1 else None
        if not found:
            return None
        if found[1] in self.hosts or (self.any_address and found[1] == _own_address(request)):
            return found[1]
        return None

    def _may_ask(self, sent: str, host: str) -> bool:
        return sent.lower() in self.own_origins(host) or sent.lower() in self.origins

    def _has_token(self, request: web.Request) -> bool:
        assert self.token is not None
        # Every one is compared: how long it takes tells nothing.
        return sum([hmac.compare_digest(t.encode(), self.token.encode()) for t in offered_tokens(request)]) > 0


def needs_token(path: str) -> bool:
    return path.startswith(NEEDS_TOKEN) and path not in OPEN_TO_ALL


def offered_tokens(request: web.Request) -> list[str]:
    """Everything that may be a token: of the query, of the headers, of the sub-protocols (`moshi, token.XYZ`, or OpenAI's)."""
    headers = request.headers
    scheme, _, bearer = headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    protocols = ",".join(headers.getall(hdrs.SEC_WEBSOCKET_PROTOCOL, []))
    named = [p.removeprefix(x) for p in map(str.strip, protocols.split(",")) for x in TOKEN_PREFIXES if p.startswith(x)]
    offered = [
        request.query.get("token"),
        request.query.get("auth_id"),
        headers.get("kyutai-api-key"),
        bearer.strip() if scheme.lower() == "bearer" else None,
        *named,
    ]
    return [t for t in offered if t]


def _own_address(request: web.Request) -> str | None:
    """The address of this machine at which the connection arrived, as a Host header has it."""
    name = request.transport.get_extra_info("sockname") if request.transport is not None else None
    if not name:
        return None
    address = str(name[0]).lower().removeprefix("::ffff:")
    return f"[{address}]" if ":" in address else address


def _refuse(status: int, sentence: str) -> web.Response:
    return web.Response(status=status, text=sentence + "\n")


def middleware(rules: Rules):
    """Asks `rules` before anything else looks at a request, and lets the pages of allowed origins read the answers."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        refused = rules.refusal(request)
        if refused is not None:
            return refused
        if rules.is_preflight(request):
            return web.Response(
                status=204,
                headers={
                    hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
                    hdrs.ACCESS_CONTROL_ALLOW_HEADERS: "authorization, *",
                },
            )
        return await handler(request)

    return guard


def add_headers(rules: Rules) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    async def add(request: web.Request, response: web.StreamResponse) -> None:
        for name, value in HEADERS.items():
            response.headers[name] = value
        asked = request.headers.get(hdrs.ORIGIN, "").lower()
        if asked in rules.origins:
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.VARY] = hdrs.ORIGIN

    return add


def hosts(named: Iterable[str]) -> set[str]:
    """Loopback's names and those of the command line."""
    return set(LOOPBACK_NAMES) | {host_name(n) for n in named}
