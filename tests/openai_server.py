"""A server with small models of every kind, and OpenAI's own client of it."""

from __future__ import annotations

import functools

import openai
import speech_toys
from speech_server import SpeechServer
from web_server import PATIENCE

from moshi_mlx.engine.scheduler import Scheduler
from moshi_mlx.server.services import Talking
from moshi_mlx.session.conversations import Conversations, Talk


def talking(rows: int = 1, preset: str = "tiny", seed: int = 0) -> Talking:
    """Every talk has the same seed."""
    scheduler = Scheduler(lambda: Conversations(speech_toys.loaded(preset), rows))
    return Talking(preset, scheduler, lambda wishes: Talk(seed=seed), translation="hibiki" in preset)


class OpenAI(SpeechServer):
    """Every error of the server reaches the test: nothing is tried again."""

    @functools.cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.origin}/v1", api_key="none", max_retries=0, timeout=PATIENCE)

    @property
    def awaited(self) -> openai.AsyncOpenAI:
        """For one event loop."""
        return openai.AsyncOpenAI(base_url=f"{self.origin}/v1", api_key="none", max_retries=0, timeout=PATIENCE)
