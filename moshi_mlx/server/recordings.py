"""A client's recording: kept in a temporary file, however large it is, and fed to a row as fast as that takes it.

Neither a disk nor a decoder that is slow holds up anybody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..audio.files import AudioReader, read_audio
from ..audio.sources import UnknownSound
from ..engine.streams import Stream
from ..errors import AudioError, InputError
from ..output import OutputFile, ScratchFolder

LARGEST = 512 << 20
# Bytes that are written at once.
_PIECE = 1 << 20
# How often it is looked whether a row that is behind has room again.
_ROOM_SECONDS = 0.02


class TooLarge(InputError):
    """More bytes than a recording may have."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone at the end."""
    folder = ScratchFolder()
    try:
        yield folder.path
    finally:
        folder.remove()


async def keep(pieces: AsyncIterator[bytes], path: Path, most: int) -> int:
    """Write `pieces` to a file; returns its size in bytes. Raises `TooLarge` beyond `most`."""
    size, waiting = 0, bytearray()
    with OutputFile(path) as output:
        async for piece in pieces:
            size += len(piece)
            if size > most:
                raise TooLarge(f"a recording may have {most >> 20} MiB.")
            waiting += piece
            if len(waiting) >= _PIECE:
                await asyncio.to_thread(output.write, bytes(waiting))
                waiting.clear()
        await asyncio.to_thread(output.write, bytes(waiting))
        await asyncio.to_thread(output.commit)
    return size


@contextmanager
def _of_clients() -> Iterator[None]:
    """Who sent a recording hears nothing of the flags of commands."""
    try:
        yield
    except UnknownSound as e:
        raise AudioError(e.told) from None


def look_at(path: Path) -> None:
    """Raises `AudioError` for what is no recording."""
    with _of_clients():
        AudioReader(path).close()


def whole(path: Path, rate: int) -> np.ndarray:
    """All of a short one, float32 `[n]` at `rate`. Raises `AudioError`."""
    with _of_clients():
        return read_audio(path, rate)


async def feed(stream: Stream, path: Path, tell: Callable[[str], None]) -> int:
    """All of a recording, after which the stream is finished, or closed where it cannot be read; returns samples at the stream's rate.

    `tell` gets a sentence where the end is missing. Raises `AudioError`.
    """
    rate, samples = stream.bounds.sample_rate, 0
    try:
        with _of_clients(), AudioReader(path, rate, tell=tell) as reader:
            blocks = reader.blocks()
            while (block := await asyncio.to_thread(next, blocks, None)) is not None:
                while stream.buffered > stream.bounds.seconds * rate / 2 and not stream.ended:
                    await asyncio.sleep(_ROOM_SECONDS)
                if stream.ended:
                    break
                stream.feed(block)
                samples += len(block)
        if not samples:
            raise AudioError(f"{path.name} holds no audio.")
        stream.finish()
    except BaseException:
        stream.close()
        raise
    return samples
