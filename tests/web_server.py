"""A server in this process for tests: real sockets, any model behind them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from moshi_mlx.engine.kind import Kind, Outcome
from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.engine.streams import Bounds, Inbox, WhenFull
from moshi_mlx.server import app, door, guard, pages
from moshi_mlx.server.app import About
from moshi_mlx.server.query import Wishes
from moshi_mlx.server.services import Services, Talking
from moshi_mlx.session.reply import Frame

PATIENCE = 120.0
FRAME = 1920


class Echo:
    """Rows that say what they hear, 0.6 times as loud, after one silent frame, and count aloud every fifth.

    A step takes `seconds`, and what comes faster waits, `most` seconds of it.
    """

    def __init__(self, rows: int = 1, seconds: float = 0.0, most: float = 2.0):
        self.rows, self.seconds = rows, seconds
        self.bounds = Bounds(most, 256, WhenFull.DROP)
        self.options: list[Any] = []
        self._frames: dict[int, int] = {}

    def join(self, row: int, options: Any) -> Iterator[None]:
        self.options.append(options)
        self._frames[row] = 0
        yield

    def leave(self, row: int) -> None:
        self._frames.pop(row, None)

    def ready(self, row: int, inbox: Inbox) -> bool:
        return inbox.has_frame or inbox.at_end

    def collect(self, row: int, inbox: Inbox) -> Any:
        return (inbox.frame(), False) if inbox.has_frame else None

    def step(self, given: dict[int, Any]) -> dict[int, Outcome]:
        time.sleep(self.seconds)
        outcomes = {}
        for row, each in given.items():
            if each is None:
                outcomes[row] = Outcome(done=True)
                continue
            index = self._frames[row]
            self._frames[row] += 1
            token = 0 if index else -2
            text = f" {index}" if index % 5 == 0 else ""
            frame = Frame(0.6 * each[0], text, token, np.full(8, token, np.int32), index, index * 0.08)
            outcomes[row] = Outcome([frame])
        return outcomes


class Server:
    """`make()` gives the model. Everything else is as the command has it; `settings` are set at the door (idle_seconds, most)."""

    def __init__(
        self,
        make: Callable[[], Kind] = Echo,
        options: Callable[[Wishes], Any] = lambda wishes: wishes,
        about: About | None = None,
        static: Path | None = pages.PAGE_FOLDER,
        host: str | None = None,
        tls: Any = None,
        settings: dict | None = None,
        **rules: Any,
    ):
        self.scheduler = Scheduler(make)
        self.door = door.Door(host, 0, tls)
        for name, value in (settings or {}).items():
            setattr(self.door, name, value)
        self.rules = guard.Rules(port=self.door.port, scheme="https" if tls else "http", **rules)
        about = about or About(model="echo", rows=self.scheduler.rows)
        self._app = app.make_app(Services(Talking("echo", self.scheduler, options)), self.rules, about, static)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        await app.serve(self._app, self.door, self._stop, self._ready.set)

    def __enter__(self) -> Server:
        self._thread.start()
        assert self._ready.wait(PATIENCE)
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE)
        self.scheduler.close()

    def cut(self) -> None:
        """Every connection is lost, without a farewell."""
        self._loop.call_soon_threadsafe(lambda: [c.transport.abort() for c in list(self.door.busy)])

    @property
    def port(self) -> int:
        return self.door.port

    @property
    def origin(self) -> str:
        return f"{self.rules.scheme}://localhost:{self.port}"

    @property
    def chat(self) -> str:
        return self.origin + "/api/chat"

    def wait_free(self, seconds: float = PATIENCE) -> float:
        """Until no row is taken; how long it took."""
        begun = time.monotonic()
        while self.scheduler.live or self.scheduler.waiting:
            assert time.monotonic() - begun < seconds, "a row is still taken"
            time.sleep(0.02)
        return time.monotonic() - begun


class Client:
    """A talk over a socket: what came, sorted by kind."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, pcm: str = "<i2"):
        self.socket, self._pcm = socket, np.dtype(pcm)
        self.audio: list[bytes] = []
        self.texts: list[str] = []
        self.errors: list[str] = []
        self.metadata: list[dict] = []
        self.handshakes: list[bytes] = []
        self.order: list[int] = []
        # As the server sent it: what the socket says afterwards may be of its own answer.
        self.close_code: int | None = None

    async def receive(self, seconds: float = PATIENCE) -> int | None:
        """The next message; its kind, None at the end."""
        message = await self.socket.receive(seconds)
        if message.type is not aiohttp.WSMsgType.BINARY:
            assert message.type in (
                aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR,
            ), message  # fmt: skip
            if message.type is aiohttp.WSMsgType.CLOSE:
                self.close_code = message.data
            return None
        kind, payload = message.data[0], message.data[1:]
        self.order.append(kind)
        if kind == 0:
            self.handshakes.append(payload)
        elif kind == 1:
            self.audio.append(payload)
        elif kind == 2:
            self.texts.append(payload.decode())
        elif kind == 4:
            import json

            self.metadata.append(json.loads(payload))
        elif kind == 5:
            self.errors.append(payload.decode())
        else:
            raise AssertionError(f"a message of kind {kind}")
        return kind

    async def until(self, wanted: Callable[[Client], bool]) -> None:
        while not wanted(self):
            assert await self.receive() is not None, (self.errors, self.socket.close_code)

    async def opened(self) -> None:
        await self.until(lambda c: bool(c.handshakes))

    async def send(self, pcm: np.ndarray) -> None:
        if self._pcm.kind == "i":
            pcm = np.rint(pcm * 32767)
        await self.socket.send_bytes(b"\x01" + pcm.astype(self._pcm).tobytes())

    async def talk(self, pcm: np.ndarray, first: int = 1) -> None:
        """Frame by frame, each when the last was answered; `first` frames are not."""
        for i, frame in enumerate(pcm.reshape(-1, FRAME)):
            await self.send(frame)
            if i >= first:
                wanted = i + 1 - first
                await self.until(lambda c, n=wanted: len(c.audio) >= n)

    @property
    def pcm(self) -> np.ndarray:
        x = np.frombuffer(b"".join(self.audio), self._pcm)
        return x.astype(np.float32) / (32767 if self._pcm.kind == "i" else 1)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def tone(frames: int, hertz: float = 300.0) -> np.ndarray:
    t = np.arange(frames * FRAME) / 24000
    return (0.3 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


PIECE = 6000


def found_again(out: np.ndarray, said: np.ndarray) -> float:
    """How well the loudest quarter of a second of `out` is found in `said`: on a busy machine loudspeakers have gaps."""

    def energies(pcm: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(np.square(pcm, dtype=np.float64))])
        return total[PIECE:] - total[:-PIECE]

    loud = int(np.argmax(energies(out)))
    piece = out[loud : loud + PIECE]
    size = len(said) + len(piece)
    correlation = np.fft.irfft(np.fft.rfft(said, size) * np.conj(np.fft.rfft(piece, size)))
    correlation = correlation[: len(said) - len(piece) + 1]
    return float(np.max(correlation / np.sqrt(energies(said) * np.sum(np.square(piece)) + 1e-9)))
