"""Closing a socket that another task listens to: in order, so that the client learns why."""

from __future__ import annotations

import asyncio

from aiohttp import web

# With the answer of a client that is slow to close.
PATIENCE = 8.0
# A close has room for 123 (RFC 6455, 5.5).
REASON_BYTES = 120


class Farewell:
    """`listening` is the task that receives. It is ended first: while something receives, aiohttp cuts the connection off behind its
    close, and a client that still has to answer that hears of an error in place of the code.
    """

    def __init__(self, socket: web.WebSocketResponse):
        self._socket = socket
        self._begun, self._over = False, asyncio.Event()
        self.listening: asyncio.Task[None] | None = None

    async def close(self, code: int, sentence: str = "") -> None:
        self._begun = True
        try:
            if self.listening is not None and self.listening is not asyncio.current_task():
                self.listening.cancel()
                await asyncio.gather(self.listening, return_exceptions=True)
            # Half a character would be an error of the protocol to the client, in place of the code.
            reason = sentence.encode()[:REASON_BYTES].decode(errors="ignore")
            await self._socket.close(code=code, message=reason.encode())
        finally:
            self._over.set()

    async def done(self) -> bool:
        """Whether a close has begun; then it is over, too."""
        if self._begun:
            await asyncio.wait_for(self._over.wait(), PATIENCE)
        return self._begun
