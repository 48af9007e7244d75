"""Who may ask a local server, and what it answers with: docs/spec/protocol.md, as written."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import pytest
from web_server import PATIENCE, Client, Echo, Server, tone

pytest.importorskip("sphn")
from moshi_mlx.errors import InputError
from moshi_mlx.server import door, guard, log, pages

TOKEN = "a-token-of-more-than-twenty-two-letters"


@pytest.fixture(scope="module")
def server():
    friends = {guard.origin("https://friend.example")}
    with Server(make=lambda: Echo(2), hosts=guard.hosts(["moshi.local"]), origins=friends) as s:
        yield s


def ask(port: int, request: str, host: str = "127.0.0.1", seconds: float = PATIENCE) -> tuple[int, dict, bytes]:
    """A request as it is written; status, headers and body of the answer."""
    with socket.create_connection((host, port), seconds) as s:
        s.sendall(request.replace("\n", "\r\n").encode("latin-1"))
        data = b""
        with contextlib.suppress(ConnectionError):
            while part := s.recv(65536):
                data += part
                head, separator, body = data.partition(b"\r\n\r\n")
                if separator and (b" 101 " in head[:16] or len(body) >= length(head)):
                    break
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    return int(lines[0].split()[1]), dict(line.lower().split(": ", 1) for line in lines[1:]), body


def length(head: bytes) -> int:
    found = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    return int(found[0]) if found else 1 << 30


def status(server: Server, method: str = "GET", path: str = "/", **headers: str) -> int:
    """With the Host of a browser, unless another is given; None leaves it out."""
    sent = {"Host": f"localhost:{server.port}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    lines = "".join(f"{k}: {v}\n" for k, v in sent.items() if v is not None)
    return ask(server.port, f"{method} {path} HTTP/1.1\n{lines}Content-Length: 0\nConnection: close\n\n")[0]


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec_WebSocket_Version": "13",
    "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def upgraded(server: Server, path: str = "/api/chat", **headers: str) -> int:
    sent = {"Host": f"localhost:{server.port}", **UPGRADE, **headers}
    lines = "".join(f"{k.replace('_', '-')}: {v}\n" for k, v in sent.items() if v is not None)
    code = ask(server.port, f"GET {path} HTTP/1.1\n{lines}\n")[0]
    server.wait_free()
    return code


# Host ---------------------------------------------------------------------------------------------------------------

GOOD_HOSTS = [
    "localhost",
    "LOCALHOST:{port}",
    "127.0.0.1:{port}",
    "[::1]:{port}",
    "127.0.0.1",
    "moshi.local",
    "Moshi.Local:80",
]
BAD_HOSTS = [
    "evil.example", "localhost.evil.example", "localhost.evil.example:{port}", "evil.example:{port}", "127.0.0.1.evil.example", "127.0.0.2", "0.0.0.0",
    "localhost:{port}:1", "localhost@evil.example", "evil.example#localhost", "xlocalhost", "local host", "", "[::2]", "::1", "localhost.",
]  # fmt: skip


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_names_of_this_server(server, host):
    assert status(server, Host=host.format(port=server.port)) == 200


@pytest.mark.parametrize(
    "path", ["/", "/api/chat", "/api/about", "/metrics", "/health", "/no/such/path", "/api/build_info"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "PUT"])
def test_another_name_is_refused_for_every_path_and_method(server, method, path):
    assert status(server, method, path, Host="evil.example") == 403


@pytest.mark.parametrize("host", BAD_HOSTS)
def test_every_other_name_is_refused(server, host):
    # What is no name at all, aiohttp refuses before us.
    assert status(server, Host=host.format(port=server.port)) in (403, 400)
    assert upgraded(server, Host=host.format(port=server.port)) in (403, 400)


def test_no_name_and_two_names_are_refused(server):
    assert ask(server.port, "GET / HTTP/1.0\n\n")[0] == 403
    two = "GET / HTTP/1.1\nHost: localhost\nHost: localhost\nConnection: close\n\n"
    assert ask(server.port, two)[0] in (400, 403)


def test_everywhere_means_the_address_of_the_connection():
    """`--host 0.0.0.0`: the address under which a client came, and no other."""
    with Server(host="0.0.0.0", any_address=True, hosts=set(), token=TOKEN) as s:
        assert status(s, Host=f"127.0.0.1:{s.port}") == 200
        assert status(s, Host="10.1.2.3") == 403
        assert status(s, Host="evil.example") == 403


# Origin -------------------------------------------------------------------------------------------------------------

BAD_ORIGINS = [
    "null", "http://localhost:{port}.evil.example", "http://evil.example", "http://localhost", "http://localhost:1", "https://localhost:{port}",
    "http://xlocalhost:{port}", "http://localhost:{port}/", "http://localhost:{port}@evil.example", "file://", "http://127.0.0.1:{port}", "",
    "http://localhost:{port}0", "https://friend.example.evil.example", "http://friend.example", "https://friend.example:444", "https://xfriend.example",
]  # fmt: skip


@pytest.mark.parametrize("origin", BAD_ORIGINS)
def test_pages_of_others_are_refused_before_the_upgrade(server, origin):
    origin = origin.format(port=server.port)
    assert upgraded(server, Origin=origin) == 403
    for method, path in (
        ("POST", "/"),
        ("POST", "/v1/audio/transcriptions"),
        ("GET", "/api/about"),
        ("OPTIONS", "/api/chat"),
    ):
        assert status(server, method, path, Origin=origin) == 403


def test_its_own_pages_friends_and_programs_are_let_in(server):
    own = f"http://localhost:{server.port}"
    assert upgraded(server) == 101
    assert upgraded(server, Origin=own) == 101
    assert upgraded(server, Origin="https://friend.example") == 101
    assert upgraded(server, Host=f"[::1]:{server.port}", Origin=f"http://[::1]:{server.port}") == 101
    assert status(server, path="/api/about", Origin=own) == 200


def test_a_form_of_a_foreign_page_is_refused(server):
    """A multipart POST needs no preflight: it arrives, and goes no further than the door."""
    body = '--x\nContent-Disposition: form-data; name="file"; filename="a.wav"\n\nRIFF\n--x--\n'
    head = (
        f"POST /v1/audio/transcriptions HTTP/1.1\nHost: localhost:{server.port}\nOrigin: http://evil.example\n"
        f"Content-Type: multipart/form-data; boundary=x\nContent-Length: {len(body) + body.count(chr(10))}\nConnection: close\n\n"
    )
    assert ask(server.port, head + body)[0] == 403


def test_only_friends_may_read_across_origins(server):
    def headers(origin: str | None, method: str = "GET") -> dict:
        line = f"Origin: {origin}\nAccess-Control-Request-Method: GET\n" if origin else ""
        return ask(server.port, f"{method} /api/about HTTP/1.1\nHost: localhost\n{line}Connection: close\n\n")[1]

    assert "access-control-allow-origin" not in headers(None)
    assert "access-control-allow-origin" not in headers("http://evil.example")
    friend = headers("https://friend.example")
    assert friend["access-control-allow-origin"] == "https://friend.example"
    assert friend["vary"] == "origin"
    assert "authorization" in headers("https://friend.example", "OPTIONS")["access-control-allow-headers"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/audio/speech", "/api/about", "/metrics"])
def test_a_preflight_has_no_token(path):
    """Browsers send none; everything else wants it, and a friend's page can read that it does."""
    friend, asks = "https://friend.example", {"Access-Control-Request-Method": "POST"}

    def answer(method: str, **headers: str) -> tuple[int, dict]:
        lines = "".join(f"{k.replace('_', '-')}: {v}\n" for k, v in headers.items())
        return ask(s.port, f"{method} {path} HTTP/1.1\nHost: localhost\n{lines}Connection: close\n\n")[:2]

    with Server(token=TOKEN, origins={friend}) as s:
        code, headers = answer("OPTIONS", Origin=friend, **asks)
        assert code == 204
        assert headers["access-control-allow-origin"] == friend
        assert "post" in headers["access-control-allow-methods"]
        assert "authorization" in headers["access-control-allow-headers"]
        assert answer("OPTIONS", Origin="https://evil.example", **asks)[0] == 403
        for method, sent in (
            ("OPTIONS", {"Origin": friend}),
            ("OPTIONS", {"Origin": f"http://localhost:{s.port}", **asks}),
            ("OPTIONS", asks),
            ("GET", {"Origin": friend, **asks}),
            ("POST", {"Origin": friend, "Content_Length": "0"}),
        ):
            code, headers = answer(method, **sent)
            assert code == 401, (method, sent)
            assert headers.get("access-control-allow-origin") == (friend if sent.get("Origin") == friend else None)
        assert answer("GET", Origin=friend, Authorization=f"Bearer {TOKEN}")[0] in (200, 405)


# Token --------------------------------------------------------------------------------------------------------------


def test_a_token_is_wanted_where_there_is_one():
    with Server(token=TOKEN) as s:
        # The page itself comes first and learns its token from its address.
        for path, code in {
            "/": 200,
            "/app.js": 200,
            "/health": 200,
            "/api/build_info": 200,
            "/api/about": 401,
            "/metrics": 401,
        }.items():
            assert status(s, path=path) == code, path
        assert status(s, "POST", "/v1/audio/speech") == 401
        assert upgraded(s) == 401
        wrong = TOKEN[:-1] + "x"
        for good in (
            {"path": f"/api/chat?token={TOKEN}"},
            {"Authorization": f"Bearer {TOKEN}"},
            {"kyutai_api_key": TOKEN},
            {"Sec_WebSocket_Protocol": f"moshi, token.{TOKEN}"},
        ):
            assert upgraded(s, **good) == 101
            assert upgraded(s, **{k: v.replace(TOKEN, wrong) for k, v in good.items()}) == 401
        assert upgraded(s, path="/api/chat?token=") == 401
        assert upgraded(s, Authorization="Bearer ") == 401


def test_the_sub_protocol_that_is_answered_holds_no_token():
    with Server(token=TOKEN) as s:
        sent = {**UPGRADE, "Sec_WebSocket_Protocol": f"moshi, token.{TOKEN}"}
        lines = "".join(f"{k.replace('_', '-')}: {v}\n" for k, v in sent.items())
        _, headers, _ = ask(s.port, f"GET /api/chat HTTP/1.1\nHost: localhost\n{lines}\n")
        assert headers["sec-websocket-protocol"] == "moshi"


def test_nothing_said_and_no_token_is_logged(capfd, monkeypatch):
    monkeypatch.setattr(log.logger, "handlers", [])
    monkeypatch.setattr(log.logger, "propagate", True)
    log.to_standard_error()

    async def talk(s: Server) -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(
                f"{s.chat}?token={TOKEN}&audio=pcm_s16le&text_prompt=a+secret+role"
            ) as socket:
                client = Client(socket)
                await client.opened()
                await client.talk(tone(12))
                assert client.text
            async with session.get(f"{s.chat}?token={TOKEN}x") as answer:
                assert answer.status == 401

    with Server(token=TOKEN) as s:
        asyncio.run(talk(s))
        s.wait_free()
        time.sleep(0.1)
    err = capfd.readouterr().err
    assert "talk.begins talk=1" in err
    assert "talk.ended talk=1" in err
    assert "frames=12" in err
    assert TOKEN[:8] not in err
    assert "secret" not in err


def test_what_is_no_request_is_told_without_its_words(server, capfd, monkeypatch):
    """One line, no traceback, nothing of what was sent: it may be a token, or a role."""
    monkeypatch.setattr(log.logger, "handlers", [])
    monkeypatch.setattr(log.logger, "propagate", True)
    log.to_standard_error()
    for sent in (
        f"GET /api/chat?token={TOKEN}&text_prompt={'x' * 70_000} HTTP/1.1\nHost: localhost\n\n",
        f"{TOKEN}\n\n",
        f"GET /{TOKEN} HTTP/9\n\n",
    ):
        assert ask(server.port, sent)[0] == 400
    err = capfd.readouterr().err
    for error in (ConnectionResetError("gone"), ValueError("ours")):
        log.requests.error("while answering", exc_info=error)
    told, _, ours = capfd.readouterr().err.partition("\n")
    assert told.endswith(" request.lost") and "while answering" in ours and "ValueError: ours" in ours
    # aiohttp itself says nothing of some.
    assert 2 <= err.count("request.unreadable status=400") == err.count("\n")
    assert TOKEN[:8] not in err and "xxx" not in err


@pytest.mark.parametrize(
    "name", ["Upgrade", "Connection", "Sec_WebSocket_Key", "Sec_WebSocket_Version", "Sec_WebSocket_Protocol"]
)
def test_a_broken_handshake_is_no_fault_of_ours(server, name):
    assert upgraded(server, **{name: UPGRADE.get(name, "moshi")[:4] + "\xdc"}) == 400


# What is answered -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/style.css", "/no", "/api/about", "/metrics", "/api/chat?audio=mp3"])
def test_every_answer_has_the_headers(server, path):
    _, headers, _ = ask(server.port, f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    wanted = {k.lower(): v.lower() for k, v in guard.HEADERS.items()}
    assert {k: headers.get(k) for k in wanted} == wanted
    assert (
        "default-src 'self'; connect-src 'self' ws: wss:; worker-src 'self' blob:; frame-ancestors 'none'"
        in headers["content-security-policy"]
    )


@pytest.mark.parametrize(
    "path",
    [
        "/../guard.py", "/..%2fguard.py", "/%2e%2e/guard.py", "/..\\guard.py", "/a/../../guard.py", "//etc/passwd", "/%2fetc/passwd",
        "/.hidden", "/folder/.hidden", "/folder", "/folder/", "/link.txt", "/folder/%00", "/index.html/", "/%2e/index.html",
    ],
)  # fmt: skip
def test_paths_never_leave_the_folder(tmp_path, path):
    root = tmp_path / "static"
    (root / "folder").mkdir(parents=True)
    (tmp_path / "guard.py").write_text("secret")
    for name in ("index.html", ".hidden", "folder/.hidden", "folder/seen.txt"):
        (root / name).write_text(name)
    (root / "link.txt").symlink_to(tmp_path / "guard.py")
    with Server(static=root) as s:
        code, _, body = ask(s.port, f"GET {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n")
        assert b"secret" not in body
        # A slash too many is no way out.
        assert code in (404, 400) or (path == "/index.html/" and code == 200) or path == "//etc/passwd"
        assert status(s, path="/folder/seen.txt") == 200
        assert status(s, "POST", "/folder/seen.txt") == 405


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1/audio/translations", "/v1/chat/completions", "/api/nothing", "/static"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_what_is_not_there_is_of_no_wrong_method(server, method, path):
    code, headers, body = ask(server.port, f"{method} {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    assert (code, "allow" in headers) == (404, False)
    sentence = json.loads(body)["error"]["message"] if path.startswith("/v1/") else body.decode().removesuffix("\n")
    assert sentence == f"this server has no {path}."


@pytest.mark.parametrize(
    ("path", "allowed"), [("/v1/audio/speech", "post"), ("/v1/models", "get,head"), ("/app.js", "get,head")]
)
def test_a_wrong_method_is_told_the_right_ones(server, path, allowed):
    code, headers, body = ask(server.port, f"OPTIONS {path} HTTP/1.1\nHost: localhost\nConnection: close\n\n")
    assert (code, headers["allow"]) == (405, allowed)
    assert f"{path} does not answer OPTIONS.".encode() in body


def test_without_a_page_there_is_none():
    with Server(static=None) as s:
        assert status(s) == 404
        assert status(s, path="/health") == 200


def test_no_file_of_the_page_comes_from_elsewhere():
    """And all of it together is small."""
    files = [p for p in pages.PAGE_FOLDER.iterdir() if not p.name.startswith(".")]
    assert sum(p.stat().st_size for p in files) < 60_000
    for path in files:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text and "//cdn" not in text, path.name
        assert " style=" not in text and "<script>" not in text, path.name


# Bounds ---------------------------------------------------------------------------------------------------------------


def test_a_frame_that_is_too_large_ends_the_talk(server):
    async def send() -> int | None:
        async with aiohttp.ClientSession() as session, session.ws_connect(server.chat, max_msg_size=0) as socket:
            await socket.send_bytes(b"\x01" + bytes((1 << 20) - 1))
            # Of a connection that is closed amid what is sent, the rest may not go out and the reason may be lost.
            with contextlib.suppress(ConnectionError):
                await socket.send_bytes(b"\x01" + bytes(1 << 20))
            while (await socket.receive(PATIENCE)).type is aiohttp.WSMsgType.BINARY:
                pass
            return socket.close_code

    assert asyncio.run(send()) in (1009, 1006)
    server.wait_free()


def test_who_sends_a_request_slowly_is_let_go():
    with Server(settings={"idle_seconds": 1.0}) as s:
        begun = time.monotonic()
        with socket.create_connection(("127.0.0.1", s.port), PATIENCE) as slow:
            slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
            with contextlib.suppress(ConnectionError):
                while True:
                    slow.sendall(b"X-Slow: 1\r\n")
                    time.sleep(0.2)
        assert 0.5 < time.monotonic() - begun < 20
        assert status(s) == 200


def abandoned(s: Server, count: int) -> None:
    """Connections of which some never ask, some ask in part, some open a talk and vanish; then somebody talks."""
    kept = []
    for i in range(count):
        try:
            connection = socket.create_connection(("127.0.0.1", s.port), PATIENCE)
        except OSError:
            continue
        kept.append(connection)
        with contextlib.suppress(OSError):
            if i % 3 == 1:
                connection.sendall(b"GET /api/chat HTTP/1.1\r\nHost: loc")
            elif i % 3 == 2:
                lines = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in UPGRADE.items())
                connection.sendall(f"GET /api/chat?wait=0 HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
                connection.close()
    begun = time.monotonic()
    while status(s, path="/health") != 200:
        assert time.monotonic() - begun < 30
    s.wait_free(30)

    async def talk() -> str:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{s.chat}?audio=pcm_s16le") as socket:
            client = Client(socket)
            await client.opened()
            await client.talk(tone(12))
            await client.until(lambda c: c.text == " 0 5 10")
            return client.text

    assert asyncio.run(talk()) == " 0 5 10"
    for connection in kept:
        connection.close()


def test_many_abandoned_connections_shut_nobody_out():
    with Server(settings={"most": 40}) as s:
        abandoned(s, 150)


@pytest.mark.slow
def test_a_thousand_abandoned_connections_shut_nobody_out():
    with Server() as s:
        abandoned(s, 1000)


def test_a_queue_has_an_end():
    async def talk(s: Server) -> list[int]:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            for _ in range(1 + 32):
                await stack.enter_async_context(session.ws_connect(s.chat))
                while s.scheduler.waiting > 32:
                    await asyncio.sleep(0.01)
            codes = []
            while s.scheduler.waiting < 32:
                await asyncio.sleep(0.01)
            async with session.get(s.chat, headers={k.replace("_", "-"): v for k, v in UPGRADE.items()}) as answer:
                codes.append(answer.status)
                assert "Retry-After" in answer.headers
            return codes

    with Server() as s:
        assert asyncio.run(talk(s)) == [503]


# The door -------------------------------------------------------------------------------------------------------------


def test_loopback_is_where_it_listens_by_default():
    entrance = door.Door(None, 0)
    addresses = {s.getsockname()[0] for s in entrance.sockets}
    entrance.close()
    assert "127.0.0.1" in addresses
    assert addresses <= {"127.0.0.1", "::1"}
    assert door.is_loopback(None) and door.is_loopback("localhost") and door.is_loopback("::1")
    assert not door.is_loopback("0.0.0.0") and not door.is_loopback("::")


def test_it_can_be_reached_by_both_addresses(server):
    assert ask(server.port, "GET /health HTTP/1.1\nHost: 127.0.0.1\n\n")[0] == 200
    if any(s.family == socket.AF_INET6 for s in server.door.sockets):
        assert ask(server.port, "GET /health HTTP/1.1\nHost: [::1]\n\n", "::1")[0] == 200


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("no.such.host.invalid", 0, "is no address of this machine"),
        ("192.0.2.1", 0, "is no address of this machine"),
        (None, 70000, "from 0 to 65535"),
    ],
)
def test_what_cannot_be_listened_at_is_told(host, port, message):
    with pytest.raises(InputError, match=message):
        door.Door(host, port)


def test_a_port_that_is_taken_is_told(server):
    with pytest.raises(InputError, match=f"port {server.port} is taken by another program"):
        door.Door(None, server.port)


@pytest.mark.parametrize("text", ["a b", "http://x", "", "a/b", "a@b"])
def test_names_that_are_none(text):
    with pytest.raises(InputError, match="a host should be"):
        guard.host_name(text)


@pytest.mark.parametrize(
    "text", ["*", "null", "example.org", "https://*.example.org", "https://example.org/path", "ftp://example.org"]
)
def test_origins_that_are_none(text):
    with pytest.raises(InputError, match="an origin should be"):
        guard.origin(text)


def certificate(folder: Path) -> Path:
    folder.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", folder / "key.pem", "-out", folder / "cert.pem",
         "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_https(tmp_path):
    import ssl

    folder = certificate(tmp_path / "tls")
    trusted = ssl.create_default_context(cafile=folder / "cert.pem")

    async def talk(s: Server) -> str:
        connector = aiohttp.TCPConnector(ssl=trusted)
        async with aiohttp.ClientSession(connector=connector) as session:
            for origin, code in ((f"http://localhost:{s.port}", 403), (f"https://localhost:{s.port}", 200)):
                async with session.get(s.origin + "/api/about", headers={"Origin": origin}) as answer:
                    assert answer.status == code
            async with session.ws_connect(f"{s.chat}?audio=pcm_s16le") as socket:
                client = Client(socket)
                await client.opened()
                await client.talk(tone(6))
                await client.until(lambda c: c.text == " 0 5")
                return client.text

    with Server(tls=door.tls_context(str(folder))) as s:
        assert asyncio.run(talk(s)) == " 0 5"


def test_certificates_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="cert.pem is not there"):
        door.tls_context(str(tmp_path))
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(InputError, match="cannot be used"):
        door.tls_context(str(tmp_path))


def test_health_metrics_and_build_info(server):
    _, headers, body = ask(server.port, "GET /metrics HTTP/1.1\nHost: localhost\n\n")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = [line for line in body.decode().splitlines() if not line.startswith("#")]
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    assert values['moshi_rows{kind="talk"}'] == 2
    assert {
        'moshi_frames_total{kind="talk"}',
        'moshi_late_frames_total{kind="talk"}',
        'moshi_dropped_input_samples_total{kind="talk"}',
        'moshi_rows_in_use{kind="talk"}',
        'moshi_step_seconds{kind="talk",quantile="0.5"}',
    } <= set(values)
    assert json.loads(ask(server.port, "GET /health HTTP/1.1\nHost: localhost\n\n")[2])["status"] == "ok"
    info = json.loads(ask(server.port, "GET /api/build_info HTTP/1.1\nHost: localhost\n\n")[2])
    assert {"build_timestamp", "git_hash", "version"} <= set(info)
    assert sys.executable not in str(info)


def test_health_says_when_the_model_has_stopped():
    with Server() as s:
        s.scheduler.close()
        assert status(s, path="/health") == 503
        assert upgraded(s) == 503
