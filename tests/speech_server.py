"""A server with small speech models in this process, and clients of the Rust server's protocol that keep what they were sent."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import msgpack
import numpy as np
import speech_toys
from web_server import PATIENCE, Server

from moshi_mlx import checkpoint as checkpoints
from moshi_mlx.checkpoint.loader import Checkpoint
from moshi_mlx.engine.model_thread import ModelThread
from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.server import app, door, guard
from moshi_mlx.server.services import Hearing, Services, Speaking
from moshi_mlx.speech_to_text.rows import Transcriptions
from moshi_mlx.text_to_speech.rows import Speak, Utterances
from moshi_mlx.text_to_speech.tts_model import TTSModel

FRAME, RATE = 1920, 24000
CLOSED = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING)


def load(preset: str) -> Checkpoint:
    """Anew: a checkpoint belongs to the thread that loaded it."""
    return checkpoints.load(speech_toys.checkpoint(preset))


def hearing(make=None, rows: int = 2, delay: float = 0.5, thread: ModelThread | None = None) -> Hearing:
    scheduler = Scheduler(make or (lambda: Transcriptions(load("tiny-stt"), rows)), thread=thread)
    heads = scheduler.call(lambda kind: getattr(kind, "heads", 0)).result()
    return Hearing("tiny-stt", scheduler, heads, delay)


def speaking(
    rows: int = 2, preset: str = "tiny-tts", thread: ModelThread | None = None, items: int | None = None
) -> Speaking:
    """`items`: frames that may wait to be read."""
    folder = speech_toys.checkpoint("tiny-tts") / "voices"
    voices = {p.name.partition(".")[0] + ".wav": p for p in sorted(folder.iterdir())}
    embeds = preset == "tiny-tts"
    usual = Speak(voices=(voices["a.wav"],) if embeds else (), cfg_coef=2.0 if embeds else None)

    def make() -> Utterances:
        tts = TTSModel.from_checkpoint(load(preset), temp=0.0, n_q=16, voice_repo=str(folder))
        kind = Utterances(tts, rows, usual)
        kind.bounds = replace(kind.bounds, items=items or kind.bounds.items)
        return kind

    scheduler = Scheduler(make, thread=thread)
    return Speaking(
        "tiny-tts", scheduler, voices if embeds else {}, "a.wav" if embeds else None, usual, clones=not embeds
    )


class SpeechServer(Server):
    """`services` on a port of their own."""

    def __init__(self, services: Services, **rules: Any):
        self.services = services
        self.door = door.Door(None, 0)
        for sock in self.door.sockets:
            # So that a client that does not read is noticed soon.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
        self.rules = guard.Rules(port=self.door.port, **rules)
        self._app = app.make_app(services, self.rules, static=None)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @property
    def schedulers(self) -> list[Scheduler]:
        return [s.scheduler for s in self.services]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE)
        for scheduler in self.schedulers:
            scheduler.close()

    def wait_free(self, seconds: float = PATIENCE) -> float:
        return sum(Server.wait_free(_Of(s), seconds) for s in self.schedulers)  # type: ignore[arg-type]

    @property
    def asr(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/asr-streaming"

    @property
    def tts(self) -> str:
        return f"ws://127.0.0.1:{self.port}/api/tts_streaming"


class _Of:
    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler


class Wire:
    """One client: every message that came, in order."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self.socket = socket
        self.messages: list[dict] = []
        self.raw: list[bytes] = []

    async def receive(self, seconds: float = PATIENCE) -> dict | None:
        """The next message; None at the end."""
        message = await self.socket.receive(seconds)
        while message.type is aiohttp.WSMsgType.PING:
            # A client that does not answer them.
            message = await self.socket.receive(seconds)
        if message.type in CLOSED or message.type is aiohttp.WSMsgType.ERROR:
            return None
        assert message.type is aiohttp.WSMsgType.BINARY, message
        self.raw.append(message.data)
        self.messages.append(msgpack.unpackb(message.data))
        return self.messages[-1]

    async def until(self, kind: str, count: int = 1) -> None:
        """Until `count` messages of a kind have come."""
        while len(self.of(kind)) < count:
            assert await self.receive() is not None, (kind, self.messages[-3:], self.socket.close_code)

    async def rest(self) -> int | None:
        """All there is to come; the code of the close."""
        while await self.receive() is not None:
            pass
        return self.socket.close_code

    def of(self, kind: str) -> list[dict]:
        return [m for m in self.messages if m["type"] == kind]

    async def send(self, kind: str, **fields: Any) -> None:
        await self.socket.send_bytes(msgpack.packb({"type": kind, **fields}, use_single_float=True))

    async def audio(self, pcm: np.ndarray) -> None:
        await self.send("Audio", pcm=pcm.tolist())

    @property
    def pcm(self) -> np.ndarray:
        parts = [np.array(m["pcm"], np.float32) for m in self.of("Audio")]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)


@asynccontextmanager
async def wire(url: str, ready: bool = True, **options: Any) -> AsyncIterator[Wire]:
    options = {"headers": {"kyutai-api-key": "public_token"}, "max_msg_size": 0, **options}
    async with aiohttp.ClientSession() as session, session.ws_connect(url, **options) as socket:
        client = Wire(socket)
        if ready:
            assert await client.receive() == {"type": "Ready"}
        yield client


def noise(frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.3, 0.3, frames * FRAME).astype(np.float32)


async def handshake(url: str, headers: dict[str, str]) -> int:
    """The HTTP status with which a socket is opened, or refused."""
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(url, headers=headers) as socket:
                return socket._response.status
        except aiohttp.WSServerHandshakeError as e:
            return e.status


def quickest(act: Callable[[], None], tries: int = 3) -> float:
    """Seconds that `act` takes at best: any one try may meet a machine that is busy with another test."""
    taken = []
    for _ in range(tries):
        begun = time.monotonic()
        act()
        taken.append(time.monotonic() - begun)
    return min(taken)
