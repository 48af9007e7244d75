"""`/api/chat` message by message: what published clients do, what they must not be able to do, and the queue for a row."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import socket
import threading
import time
from urllib.parse import quote

import aiohttp
import numpy as np
import pytest
from web_server import PATIENCE, Client, Echo, Server, tone

sphn = pytest.importorskip("sphn")
from moshi_mlx.server import chat, query  # noqa: E402
from moshi_mlx.server.query import BadQuery, Wishes  # noqa: E402

# What Kyutai's web client sends with every talk.
KYUTAI = (
    "text_temperature=0.7&text_topk=25&audio_temperature=0.8&audio_topk=250&pad_mult=0&text_seed=123456&audio_seed=654321"
    "&repetition_penalty_context=64&repetition_penalty=1.0&max_steps=4500&email=&image_resolution=224&image_url="
)


@pytest.fixture(scope="module")
def server():
    with Server() as s:
        yield s


def talk(server: Server, act, url: str = ""):
    """`act(client)` in a talk of its own; the row is free again afterwards."""

    async def run():
        pcm = "<f4" if "pcm_f32le" in url else "<i2"
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{server.chat}?{url}") as connection:
            return await act(Client(connection, pcm))

    result = asyncio.run(run())
    server.wait_free()
    return result


class Opus:
    """A client's two ends, by sphn: its reader dies of anything that is no perfect stream."""

    def __init__(self, client: Client):
        self.client, self.writer, self.reader = client, sphn.OpusStreamWriter(24000), sphn.OpusStreamReader(24000)
        self.heard: list[np.ndarray] = []
        self.done = 0

    async def say(self, pcm: np.ndarray, size: int = 1920, cut=lambda data: [data]) -> None:
        for i in range(0, len(pcm), size):
            for part in cut(self.writer.append_pcm(pcm[i : i + size])):
                await self.client.socket.send_bytes(b"\x01" + part)

    async def hear(self, frames: int) -> np.ndarray:
        while sum(map(len, self.heard)) < frames * 1920:
            await self.client.receive()
            for payload in self.client.audio[self.done :]:
                self.heard.append(self.reader.append_bytes(payload))
            self.done = len(self.client.audio)
        return np.concatenate(self.heard)[: frames * 1920]


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """The best correlation at any shift up to 60 ms."""
    n = min(len(a), len(b)) - 1440
    return max(float(np.corrcoef(a[s : s + n], b[:n])[0, 1]) for s in range(0, 1440, 8))


# Talks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", KYUTAI])
@pytest.mark.parametrize("size", [480, 960, 1920])
def test_opus_both_ways(server, url, size):
    """20, 40 and 80 ms packets; the handshake first, the two headers with the first sound, no kind that was not asked for."""

    async def act(client: Client):
        await client.opened()
        opus, pcm = Opus(client), tone(20)
        await opus.say(pcm, size)
        return await opus.hear(12), client

    heard, client = talk(server, act, url)
    assert client.handshakes == [bytes(8)]
    assert client.order[0] == 0
    assert set(client.order) == {0, 1, 2}
    assert client.audio[0].startswith(b"OggS")
    assert likeness(heard, tone(12)) > 0.98
    assert client.text.startswith(" 0 5")


def test_a_client_that_does_not_wait_for_the_handshake(server):
    async def act(client: Client):
        opus = Opus(client)
        await opus.say(tone(20))
        return await opus.hear(12)

    assert likeness(talk(server, act), tone(12)) > 0.98


def test_pages_split_over_messages_and_messages_without_payload(server):
    chance = random.Random(1)

    def cut(data: bytes) -> list[bytes]:
        at = chance.randrange(len(data))
        return [data[:at], b"", data[at:]]

    async def act(client: Client):
        await client.opened()
        opus = Opus(client)
        await opus.say(tone(20), cut=cut)
        return await opus.hear(12)

    assert likeness(talk(server, act), tone(12)) > 0.98


def test_garbage_between_pages_does_not_end_the_talk(server):
    async def act(client: Client):
        await client.opened()
        opus = Opus(client)
        await opus.say(tone(20), cut=lambda data: [random.randbytes(50), b"OggS", data])
        return await opus.hear(12)

    assert likeness(talk(server, act), tone(12)) > 0.98


def test_other_kinds_and_text_mean_nothing(server):
    async def act(client: Client):
        await client.opened()
        for message in (b"", b"\x00", b"\x03\x01", b"\x03\x03", b"\x06", b"\x09abc", b"\xff" * 100):
            await client.socket.send_bytes(message)
        await client.socket.send_str("hello")
        await client.talk(tone(8))
        return client

    client = talk(server, act, "audio=pcm_s16le")
    np.testing.assert_allclose(client.pcm, 0.6 * tone(8)[1920:], atol=2e-4)


@pytest.mark.parametrize(("kind", "atol"), [("pcm_s16le", 2e-4), ("pcm_f32le", 1e-7)])
def test_bare_samples_are_agreed_on_before_the_handshake(server, kind, atol):
    async def act(client: Client):
        await client.opened()
        await client.talk(tone(8))
        return client

    client = talk(server, act, f"audio={kind}")
    assert client.order[:2] == [4, 0]
    assert client.metadata[0]["audio"] == kind
    np.testing.assert_allclose(client.pcm, 0.6 * tone(8)[1920:], atol=atol)


def test_samples_that_are_no_numbers(server):
    async def act(client: Client):
        await client.opened()
        bad = tone(4)
        bad[100:110] = np.nan
        bad[200:210] = np.inf
        await client.talk(bad)
        return client.pcm

    heard = talk(server, act, "audio=pcm_f32le")
    assert np.isfinite(heard).all() and np.abs(heard).max() <= 1


def test_unknown_parameters_are_ignored(server):
    async def act(client: Client):
        await client.opened()
        await client.talk(tone(3))
        return set(client.order)

    assert talk(server, act, "worker_addr=x&worker_auth_id=7&no_such=%00%ff&audio=pcm_s16le&voice_prompt=") == {
        0,
        1,
        2,
        4,
    }


# Query ----------------------------------------------------------------------------------------------------------------

MALFORMED = {
    "text_temperature": ["hot", "", "-0.1", "nan", "inf", "1e999", "1_0", " 0.8", "0,8", "11", "0x1", "1e5", "٣"],
    "audio_temperature": ["x"],
    "text_topk": ["513", "1.5", "-1", "", "ten", "99999999999999999999", "+", "1e2"],
    "audio_topk": ["x"],
    "text_seed": ["-1", "18446744073709551616", "1.0", "x"],
    "audio_seed": ["x"],
    "seed": ["-2", "x", "1.5"],
    "max_steps": ["x", "-5"],
    "pad_mult": ["x", "1000"],
    "repetition_penalty": ["x", "-1", "0", "11"],
    "repetition_penalty_context": ["x", "-1", "1.5"],
    "audio": ["mp3", "", "PCM_S16LE", "opus"],
    "wait": ["yes", "2", ""],
    "figures": ["true"],
    "voice_prompt": ["../NATF2", "a/b", "a\\b", "..", ".hidden", "NATF2.exe", "NATF2.pt.pt", "x" * 70, "a\0b"],
    "text_prompt": ["x" * 4001],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in MALFORMED.items() for v in values])
def test_a_malformed_value_is_refused(name, value):
    with pytest.raises(BadQuery, match=name):
        query.parse({name: value})


def test_it_is_refused_before_the_upgrade(server):
    async def ask():
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{server.chat}?text_temperature=hot")
            assert refused.value.status == 400
            async with session.get(f"{server.chat}?text_temperature=hot") as answer:
                return answer.status, await answer.text()

    assert asyncio.run(ask()) == (400, "text_temperature should be a number from 0 to 10, found 'hot'.\n")


def test_what_is_asked_for_is_understood():
    from urllib.parse import parse_qsl

    assert query.parse(dict(parse_qsl(KYUTAI, keep_blank_values=True))) == Wishes(
        text_temperature=0.7, text_topk=25, audio_temperature=0.8, audio_topk=250, pad_bias=0.0, text_seed=123456, audio_seed=654321,
        repetition_penalty=1.0, repetition_context=64,
    )  # fmt: skip
    assert query.parse({}) == Wishes()
    assert query.parse({"seed": "-1"}).text_seed is None
    assert (query.parse({"seed": "7"}).text_seed, query.parse({"seed": "7", "audio_seed": "8"}).audio_seed) == (7, 8)
    for name in ("NATF2", "NATF2.pt", "NATF2.wav", "NATF2.safetensors"):
        assert query.parse({"voice_prompt": name}).voice == "NATF2"
    assert query.parse({"voice_prompt": "", "text_prompt": ""}) == Wishes(role="")
    # One without the other says nothing.
    assert query.parse({"repetition_penalty": "1.2"}).repetition_penalty is None


def test_the_longest_role_reaches_the_model(server):
    """In an address each of its characters takes twelve."""
    role = "\U0001f41f" * query.LONGEST_ROLE

    async def act(client: Client):
        await client.opened()

    kind = server.scheduler.call(lambda k: k).result()
    talk(server, act, f"text_prompt={quote(role)}")
    assert kind.options[-1].role == role


# Rows and the queue ---------------------------------------------------------------------------------------------------


def test_a_further_talker_is_told_its_place_and_comes_in_turn():
    async def act(s: Server):
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:

            async def connect() -> Client:
                return Client(await stack.enter_async_context(session.ws_connect(f"{s.chat}?audio=pcm_s16le")))

            first = await connect()
            await first.opened()
            second, third = await connect(), None
            await second.until(lambda c: bool(c.errors))
            third = await connect()
            await third.until(lambda c: bool(c.errors))
            assert "you are number 1 in the queue" in second.errors[0]
            assert "you are number 2 in the queue" in third.errors[0]
            async with session.get(f"{s.origin}/health") as answer:
                assert (await answer.json())["rows_in_use"] == 1
            # Impatient, and only impatient, talkers are sent away.
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await session.ws_connect(f"{s.chat}?wait=0")
            assert refused.value.status == 503
            assert "Retry-After" in refused.value.headers
            # Sound sent while waiting is not heard, and costs nothing.
            await third.send(tone(50))
            await first.talk(tone(5))
            await first.socket.close()
            await second.opened()
            await third.until(lambda c: len(c.errors) == 2)
            assert "you are number 1 in the queue" in third.errors[1]
            await second.talk(tone(5))
            # Who leaves the queue is no longer in it.
            await third.socket.close()
            begun = time.monotonic()
            while s.scheduler.waiting:
                assert time.monotonic() - begun < PATIENCE
                await asyncio.sleep(0.01)
            await second.talk(tone(5))
            assert not first.errors and not second.errors[1:]

    with Server() as s:
        asyncio.run(act(s))
        s.wait_free()


def test_an_impatient_talker_gets_a_free_row(server):
    async def act(client: Client):
        await client.opened()
        await client.talk(tone(2))
        return client.errors

    assert talk(server, act, "audio=pcm_s16le&wait=0") == []


@pytest.mark.parametrize("ping", [0.5, pytest.param(chat.PING_SECONDS, marks=pytest.mark.slow)])
def test_a_client_that_vanishes_frees_its_row(monkeypatch, ping):
    """No farewell, no FIN: the network is gone. Its row is free within 20 s."""
    monkeypatch.setattr(chat, "PING_SECONDS", ping)

    async def act(s: Server) -> float:
        connection = socket.create_connection(("127.0.0.1", s.port), PATIENCE)
        connection.sendall(
            f"GET /api/chat HTTP/1.1\r\nHost: localhost:{s.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        while not s.scheduler.live:
            await asyncio.sleep(0.01)
        # It stays open, and answers no ping any more.
        seconds = await asyncio.to_thread(s.wait_free)
        connection.close()
        return seconds

    with Server() as s:
        assert asyncio.run(act(s)) < min(20, 10 * ping)


def test_a_client_that_leaves_while_its_talk_is_prepared_frees_its_row_at_once():
    class Reading(Echo):
        def join(self, row, options):
            yield from super().join(row, options)
            while True:
                time.sleep(0.01)
                yield

    async def act(client: Client):
        await asyncio.sleep(0.1)
        return client.handshakes

    with Server(make=Reading) as s:
        assert talk(s, act) == []
        assert s.wait_free() < 2


def test_a_client_that_is_cut_off_frees_its_row_at_once(server):
    async def act() -> None:
        async with aiohttp.ClientSession() as session:
            connection = await session.ws_connect(server.chat)
            await Client(connection).opened()
            connection._response.connection.transport.abort()

    asyncio.run(act())
    assert server.wait_free() < 5


def test_a_client_that_never_reads_holds_up_nobody():
    """Its own row goes on until the network takes no more; the other talk does not notice."""

    async def act(s: Server) -> Client:
        async with aiohttp.ClientSession() as session:
            deaf = socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.connect(("127.0.0.1", s.port))
            deaf.sendall(
                f"GET /api/chat?audio=pcm_f32le HTTP/1.1\r\nHost: localhost:{s.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
            )
            payload = b"\x01" + tone(1).tobytes()
            frame = b"\x82\xfe" + len(payload).to_bytes(2, "big") + bytes(4) + payload
            async with session.ws_connect(f"{s.chat}?audio=pcm_s16le") as connection:
                client = Client(connection)
                await client.opened()
                deaf.setblocking(False)
                for i, pcm in enumerate(tone(400).reshape(-1, 1920)):
                    with contextlib.suppress(OSError):
                        deaf.send(frame)
                    await client.send(pcm)
                    await client.until(lambda c, n=i: len(c.audio) >= n)
                deaf.close()
                return client

    with Server(make=lambda: Echo(2)) as s:
        client = asyncio.run(act(s))
        assert len(client.audio) == 399
        s.wait_free()


def test_talks_leave_nothing_behind(server):
    """Neither a row, nor a task, nor a connection."""

    async def run():
        async with aiohttp.ClientSession() as session:
            for i in range(20):
                async with session.ws_connect(f"{server.chat}?audio=pcm_s16le") as connection:
                    client = Client(connection)
                    await client.opened()
                    await client.talk(tone(4))
                    if i % 3 == 0:
                        connection._response.connection.transport.abort()

    asyncio.run(run())
    server.wait_free()
    future = asyncio.run_coroutine_threadsafe(_tasks(), server._loop)
    deadline = time.monotonic() + 10
    while future.result(PATIENCE) > 6 and time.monotonic() < deadline:
        time.sleep(0.1)
        future = asyncio.run_coroutine_threadsafe(_tasks(), server._loop)
    assert future.result(PATIENCE) <= 6


async def _tasks() -> int:
    return sum("talk" in repr(t).lower() or "chat" in repr(t).lower() for t in asyncio.all_tasks())


# Lag and failures -----------------------------------------------------------------------------------------------------


def test_a_model_that_is_too_slow_is_told_counted_and_bounded():
    """100 ms a frame: sound comes at the pace of speech, is answered later and later, up to 2 s, and then left out."""

    async def act(client: Client):
        await client.opened()
        # Faster than speech, so that the bound is soon reached.
        for frame in tone(80).reshape(-1, 1920):
            await client.send(frame)
            await asyncio.sleep(0.01)
        await client.until(lambda c: any(m["figures"]["dropped"] > 20 for m in c.metadata if "figures" in m))
        return client

    with Server(make=lambda: Echo(1, seconds=0.1)) as s:
        client = talk(s, act, "audio=pcm_s16le&figures=1")
        figures = [m["figures"] for m in client.metadata if "figures" in m]
        assert figures[-1]["dropped"] > 20
        assert figures[-1]["late"] > 0
        assert max(f["lag_ms"] for f in figures) <= 2080
        assert not figures[-1]["keeps_up"]
        assert figures[-1]["step_ms"] >= 100
        assert s.scheduler.figures().dropped_in >= 20 * 1920


def test_a_published_client_gets_no_figures(server):
    async def act(client: Client):
        await client.opened()
        await Opus(client).say(tone(20))
        while len(client.audio) < 10:
            await client.receive()
        return client.metadata

    assert talk(server, act) == []


class Failing(Echo):
    def step(self, given):
        raise self.error


@pytest.mark.parametrize("known", [True, False])
def test_a_model_that_fails_is_told_in_a_sentence(known):
    """Kind 5, then 1011; of what is no message for users, not a word."""
    from moshi_mlx.errors import InputError

    class Fails(Failing):
        error = (
            InputError("the voice file /home/me/secret/mine.pt is empty.")
            if known
            else RuntimeError("/home/me/secret.py broke")
        )

    async def act(client: Client):
        await client.opened()
        await client.send(tone(2))
        while await client.receive() is not None:
            pass
        return client

    with Server(make=Fails) as s:
        client = talk(s, act, "audio=pcm_s16le")
        assert client.close_code == 1011
        assert "secret" not in client.errors[0]
        assert client.errors == (
            ["the voice file mine.pt is empty."] if known else ["the model failed; the server's log says why"]
        )


def test_a_talk_that_cannot_begin_is_told_in_a_sentence():
    from moshi_mlx.errors import InputError

    class Refuses(Echo):
        def join(self, row, options):
            raise InputError("the prompt takes 900 frames and the window has 500; shorten it.")
            yield

    async def act(client: Client):
        while await client.receive() is not None:
            pass
        return client

    with Server(make=Refuses) as s:
        client = talk(s, act)
        assert client.errors == ["the prompt takes 900 frames and the window has 500; shorten it."]
        assert client.close_code == 1011
        assert not client.handshakes


def test_a_server_that_stops_says_so():
    """To all who talk and all who wait."""

    async def act(s: Server) -> list[Client]:
        async with aiohttp.ClientSession() as session, contextlib.AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(session.ws_connect(s.chat)) for _ in range(12)]
            clients = [Client(connection) for connection in connections]
            await asyncio.gather(*(c.until(lambda c: bool(c.handshakes or c.errors)) for c in clients))
            stopping = asyncio.create_task(asyncio.to_thread(s.stop))
            await asyncio.gather(*(c.until(lambda c: "the server stops" in c.errors) for c in clients))
            for client in clients:
                while await client.receive() is not None:
                    pass
            await stopping
            return clients

    with Server(make=lambda: Echo(6)) as s:
        clients = asyncio.run(act(s))
    assert [c.close_code for c in clients] == [1001] * 12


def test_who_says_nothing_is_sent_away(monkeypatch):
    monkeypatch.setattr(chat, "SILENT_SECONDS", 0.2)

    async def act(client: Client):
        while await client.receive() is not None:
            pass
        return client

    with Server() as s:
        client = talk(s, act)
    assert client.errors == ["nothing was heard for 0 s"]
    assert client.close_code == 1000


def test_a_server_that_stops_waits_for_the_answer_to_its_farewell():
    """A client that is still talking would take a connection that is gone for a lost one."""
    with Server() as s, socket.create_connection(("127.0.0.1", s.port), PATIENCE) as talker:
        talker.sendall(
            f"GET /api/chat HTTP/1.1\r\nHost: localhost:{s.port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        heard = b""
        while bytes(9) not in heard:
            heard += talker.recv(4096)
        stopping = threading.Thread(target=s.stop)
        stopping.start()
        while not heard.endswith(b"\x03\xe9the server stops"):
            heard += talker.recv(4096)
        talker.settimeout(0.3)
        with pytest.raises(TimeoutError):
            talker.recv(1)
        talker.sendall(b"\x82\x83" + bytes(4) + b"\x01aa" + b"\x88\x82" + bytes(4) + b"\x03\xe9")
        talker.settimeout(PATIENCE)
        assert talker.recv(1) == b""
        stopping.join(PATIENCE)


def test_metrics_count_what_happened():
    async def act(s: Server) -> str:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(f"{s.chat}?audio=pcm_s16le") as connection:
                client = Client(connection)
                await client.opened()
                await client.talk(tone(9))
            with contextlib.suppress(aiohttp.WSServerHandshakeError):
                await session.ws_connect(f"{s.chat}?audio=mp3")
            async with session.get(f"{s.origin}/metrics") as answer:
                return await answer.text()

    with Server() as s:
        text = asyncio.run(act(s))
    assert 'moshi_frames_total{kind="talk"} 9\n' in text
    assert 'moshi_streams_total{kind="talk"} 1\n' in text
    assert 'moshi_refused_total{kind="talk"} 1\n' in text
    assert 'moshi_steps_total{kind="talk"} 9\n' in text


def test_wishes_are_for_one_talk_alone(server):
    """What reaches the model is what this client asked for, whoever talked before."""

    async def act(client: Client):
        await client.opened()

    with Server() as s:
        kind = s.scheduler.call(lambda k: k).result()
        talk(s, act, "text_temperature=0.3&seed=9&voice_prompt=NATF2&text_prompt=a+pirate")
        talk(s, act)
        assert [dataclasses.asdict(o)["text_temperature"] for o in kind.options] == [0.3, None]
        assert kind.options[1] == Wishes()
        assert json.dumps(kind.options[0].role) == '"a pirate"'
