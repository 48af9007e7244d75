"""Moshi in an asyncio program: the model on a thread of its own, its replies in a queue of the event loop.

    python examples/asyncio_talk.py moshi_mlx/demo/prompts/sum.flac --model demo

The recording stands for whatever brings sound: a web socket, a telephone line. The event loop never waits for the model.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable

import numpy as np

from moshi_mlx import commands
from moshi_mlx.audio.files import read_audio
from moshi_mlx.session import Session

FRAME, SECONDS = 1920, 0.08


async def speak(feed, speech: np.ndarray) -> None:
    """Sound as it would come from a line: a frame every 80 ms."""
    due = asyncio.get_running_loop().time()
    for at in range(0, len(speech), FRAME):
        feed(speech[at : at + FRAME])
        due += SECONDS
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))


async def listen(replies: asyncio.Queue, frames: int, dropped: Callable[[], int]) -> list[str]:
    """Words as they are spoken, until every frame has been answered or was dropped by a model that came too late."""
    words, heard = [], 0
    while heard + dropped() < frames:
        frame = await replies.get()
        if isinstance(frame, BaseException):
            raise frame
        heard += 1
        if frame.text:
            words.append(frame.text)
            print(frame.text, end="", flush=True)
    print()
    return words


async def talk(recording: str, model: str | None) -> list[str]:
    loop, replies = asyncio.get_running_loop(), asyncio.Queue()

    def hand_over(frame_or_error) -> None:
        # Called on the model's thread.
        loop.call_soon_threadsafe(replies.put_nowait, frame_or_error)

    speech = read_audio(recording)
    speech = speech[: len(speech) // FRAME * FRAME]
    # Loading takes seconds: not on the event loop.
    thread = await asyncio.to_thread(lambda: Session.spawn(model, on_frame=hand_over, on_error=hand_over))
    try:
        listening = asyncio.create_task(listen(replies, len(speech) // FRAME, lambda: thread.dropped))
        await speak(thread.feed, speech)
        return await listening
    finally:
        await asyncio.to_thread(thread.close)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording")
    parser.add_argument("--model", help="checkpoint folder or short name")
    args = parser.parse_args(argv)
    asyncio.run(talk(args.recording, args.model))
    return 0


if __name__ == "__main__":
    commands.run(main)
