"""Moshi in an asyncio program: the model on a thread of its own, its replies in a queue of the event loop.

    python examples/asyncio_talk.py question.wav --model path/to/folder

The recording stands for whatever brings sound: a web socket, a telephone line. The event loop never waits for the model.
"""

from __future__ import annotations

import argparse
import asyncio

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


async def listen(replies: asyncio.Queue, frames: int) -> list[str]:
    """Words as they are spoken."""
    words = []
    for _ in range(frames):
        frame = await asyncio.wait_for(replies.get(), timeout=60)
        if frame.text:
            words.append(frame.text)
            print(frame.text, end="", flush=True)
    print()
    return words


async def talk(recording: str, model: str | None) -> list[str]:
    loop, replies = asyncio.get_running_loop(), asyncio.Queue()

    def on_frame(frame) -> None:
        # Called on the model's thread.
        loop.call_soon_threadsafe(replies.put_nowait, frame)

    speech = read_audio(recording)
    speech = speech[: len(speech) // FRAME * FRAME]
    # Loading takes seconds: not on the event loop.
    thread = await asyncio.to_thread(lambda: Session.spawn(model, on_frame=on_frame))
    try:
        listening = asyncio.create_task(listen(replies, len(speech) // FRAME))
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
