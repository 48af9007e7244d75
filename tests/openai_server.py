"""A server with small models of every kind for OpenAI's client, in this process."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from typing import Any

import openai
import speech_toys
from web_server import Server

from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.server import app, door, guard
from moshi_mlx.server.services import Hearing, Services, Speaking
from moshi_mlx.speech_to_text.rows import Transcriptions
from moshi_mlx.text_to_speech.rows import Speak, Utterances

PATIENCE = 60.0


def hearing(rows: int = 2) -> Hearing:
    kind = Scheduler(lambda: Transcriptions(speech_toys.loaded("tiny-stt"), rows))
    return Hearing("tiny-stt", kind, kind.call(lambda k: k.heads).result(), 0.5)


def speaking(rows: int = 2) -> Speaking:
    folder = speech_toys.checkpoint("tiny-tts") / "voices"
    voices = {p.name.partition(".")[0]: p for p in sorted(folder.iterdir())}
    usual = Speak(voices=(voices["a"],), cfg_coef=2.0)
    kind = Scheduler(lambda: Utterances(speech_toys.make_tts(), rows, usual))
    return Speaking("tiny-tts", kind, voices, "a", usual)


class OpenAI(Server):
    """`services` on a port of their own, and clients of it."""

    def __init__(self, services: Services, settings: dict | None = None, **rules: Any):
        self.services = services
        self.schedulers = [s.scheduler for s in services]
        self.door = door.Door(None, 0)
        for name, value in (settings or {}).items():
            setattr(self.door, name, value)
        self.rules = guard.Rules(port=self.door.port, **rules)
        self._app = app.make_app(services, self.rules, static=None)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @functools.cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.origin}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    @property
    def awaited(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.origin}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE)
        for scheduler in self.schedulers:
            scheduler.close()

    def wait_free(self, seconds: float = PATIENCE) -> float:
        begun = time.monotonic()
        while any(s.live or s.waiting for s in self.schedulers):
            assert time.monotonic() - begun < seconds, "a row is still taken"
            time.sleep(0.02)
        return time.monotonic() - begun
