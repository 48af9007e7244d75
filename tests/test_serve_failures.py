"""What goes wrong is told to every client in its own protocol, rows are free again, and the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
from echo_listener import said, transcriptions
from speech_server import FRAME, SpeechServer, hearing, noise, speaking, wire
from speech_toys import _tidy  # noqa: F401
from web_server import PATIENCE, Client, Echo, tone

pytest.importorskip("sphn")
from moshi_mlx.engine.model_thread import ModelThread
from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.server.services import Services, Talking

PCM = "?format=PcmMessagePack"


@pytest.fixture
def server():
    """Talk, speech to text and text to speech on one thread."""
    with ModelThread() as thread:
        talk = Talking("echo", Scheduler(Echo, thread=thread), lambda wishes: wishes)
        services = Services(talk, hearing(transcriptions, thread=thread), speaking(2, thread=thread))
        with SpeechServer(services) as s:
            s.home = thread
            yield s


async def get(server, path: str):
    async with aiohttp.ClientSession() as session, session.get(server.origin + path) as answer:
        return answer.status, await answer.text()


def break_it(scheduler, error: BaseException) -> None:
    """The model's next step raises."""

    def step(given):
        raise error

    scheduler.call(lambda kind: setattr(kind, "step", step)).result()


async def with_everybody(server, act):
    """`act(chat, stt, tts, raw)`: a client of each protocol, all in the middle of something."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.origin}/api/chat?audio=pcm_s16le") as socket,
        session.ws_connect(f"{server.tts}?format=Pcm") as raw,
        wire(server.asr) as stt,
        wire(server.tts + PCM) as tts,
    ):
        chat = Client(socket)
        await chat.opened()
        await chat.talk(tone(3))
        await stt.audio(noise(2))
        await stt.until("Step", 2)
        # Until a row of text to speech has been given the raw client hears nothing of it.
        await raw.send_str("hello there my friend hello there my friend")
        assert len((await raw.receive(PATIENCE)).data) == 4 * FRAME
        await act(chat, stt, tts, raw)


async def closed(raw) -> int | None:
    async for _ in raw:
        pass
    return raw.close_code


def test_a_killed_thread_is_told_to_everybody(server):
    async def act(chat, stt, tts, raw):
        break_it(server.services.stt.scheduler, SystemExit("killed"))
        await stt.audio(noise(1))
        assert await stt.rest() == 1011
        assert stt.messages[-1] == {"type": "Error", "message": "the model failed; the server's log says why"}
        assert await tts.rest() == 1011 and tts.messages[-1]["type"] == "Error"
        assert await closed(raw) == 1011
        while await chat.receive() is not None:
            pass
        assert chat.socket.close_code == 1011 and len(chat.errors) == 1

    async def go():
        await with_everybody(server, act)
        status, text = await get(server, "/health")
        assert status == 503 and json.loads(text)["status"] == "the model has stopped: echo, tiny-stt, tiny-tts"
        assert 'moshi_running{kind="stt"} 0\n' in (await get(server, "/metrics"))[1]
        # Whoever comes now is told at once.
        async with wire(server.asr, ready=False) as late:
            assert await late.rest() == 1011 and late.messages[0]["type"] == "Error"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            async with aiohttp.ClientSession() as session:
                await session.ws_connect(server.origin + "/api/chat")
        assert refused.value.status == 503
        url = server.tts.replace("ws", "http", 1)
        async with aiohttp.ClientSession() as session, session.post(url, json={"text": "hello"}) as answer:
            assert answer.status == 503

    asyncio.run(asyncio.wait_for(go(), PATIENCE))


def test_a_model_that_breaks_is_told_to_its_own_clients_and_the_others_go_on(server):
    async def act(chat, stt, tts, raw):
        break_it(server.services.stt.scheduler, RuntimeError("broken"))
        await stt.audio(noise(1))
        assert await stt.rest() == 1011
        await chat.talk(tone(3), first=0)
        await tts.send("Text", text="hello")
        await tts.send("Eos")
        assert await tts.rest() == 1000 and tts.of("Audio")
        assert (await get(server, "/health"))[0] == 503
        assert not chat.errors

    asyncio.run(asyncio.wait_for(with_everybody(server, act), PATIENCE))
    assert server.home.running


def test_the_server_says_goodbye(server):
    async def act(chat, stt, tts, raw):
        server._loop.call_soon_threadsafe(server._stop.set)
        assert await stt.rest() == 1001 and stt.messages[-1]["message"] == "the server stops"
        assert await tts.rest() == 1001
        assert await closed(raw) == 1001

    asyncio.run(asyncio.wait_for(with_everybody(server, act), PATIENCE))


def test_clients_that_vanish_leave_their_rows(server):
    """Cut off in the middle, again and again; a client that stays notices nothing."""

    async def go():
        async with wire(server.asr) as stays:
            for n in range(20):
                for url in (server.asr, server.tts + PCM):
                    with contextlib.suppress(aiohttp.ClientError):
                        async with wire(url, ready=n % 2 == 0) as client:
                            await client.send("Audio", pcm=[0.0] * 100) if url == server.asr else None
                            client.socket._response.connection.transport.abort()
            await stays.audio(said("the", 12))
            await stays.until("Step", 16)
            assert [w["text"] for w in stays.of("Word")] == ["the"]

    asyncio.run(asyncio.wait_for(go(), PATIENCE))
    server.wait_free()


def test_a_client_that_reads_no_results_is_ended_and_the_others_are_not():
    def make():
        kind = transcriptions()
        kind.bounds = replace(kind.bounds, items=64)
        return kind

    async def go(server):
        async with wire(server.asr) as slow, wire(server.asr) as other:
            second = np.zeros(24000, np.float32)
            # Its socket's buffers and what may wait are filled; it goes on sending.
            for _ in range(3000):
                await slow.audio(second)
                if server.schedulers[0].live < 2:
                    break
                await asyncio.sleep(0)
            assert server.schedulers[0].live < 2
            await other.audio(noise(3))
            await other.until("Step", 3)
            assert await slow.rest() in (1013, 1006)

    with SpeechServer(Services(stt=hearing(make))) as server:
        asyncio.run(asyncio.wait_for(go(server), PATIENCE))
        server.wait_free()
