"""Work shared between machines, or processes of one, that MLX's launcher started (`mlx.launch`, `mx.distributed`).

Every rank takes its part of a list that all of them know, and makes it with its own model: nothing is exchanged meanwhile but one line
for each finished item. These lines, and results that belong together, go to rank 0 over a connection of its own, since the end of a
rank is seen there at once: what it had not finished is told by name.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

T = TypeVar("T")
# Variables by which launchers number the processes they start.
_LAUNCHED = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_ADDRESS_BYTES = 512
# How long a rank that is being ended waits to hear why, and how long ranks wait for each other to connect.
GOODBYE_SECONDS, CONNECT_SECONDS = 1.0, 60.0


class Ranks:
    """This process and the others that share `names` with it. Use it as a context manager around the work.

    `tell(text)` hears of ranks that ended before their work was done, perhaps on a thread of its own.
    """

    def __init__(self, names: Sequence[str], tell: Callable[[str], None]):
        self._names, self._tell = list(names), tell
        self.rank, self.size = 0, 1
        self.failed = False  # whether a rank has ended early
        self._finished: set[int] = set()
        self._results: dict[int, Any] = {}
        self._links: dict[int, socket.socket] = {}
        self._changed = threading.Condition()
        if any(name in os.environ for name in _LAUNCHED):
            group = mx.distributed.init()
            self.rank, self.size = group.rank(), group.size()
            if self.size > 1:
                self._connect()

    @property
    def leads(self) -> bool:
        """Whether this is the rank that says what belongs to all."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> list[tuple[int, T]]:
        """This rank's items of `items`, as many as there are names, with their numbers: every `size`-th, so that all get long and short ones."""
        return [(i, item) for i, item in enumerate(items) if i % self.size == self.rank]

    def done(self, number: int) -> None:
        """Item `number` is finished."""
        self._finished.add(number)
        if not self.leads:
            self._send(self._links.get(0), {"done": number})

    def gather(self, result: Any) -> list[Any]:
        """Wait for all: the results of all ranks on rank 0, in their order, only its own elsewhere. `result` is what JSON can hold.

        Of a rank that ended early there is none.
        """
        self._results[self.rank] = result
        if self.size == 1:
            return [result]
        if self.leads:
            with self._changed:
                self._changed.wait_for(lambda: not self._links.keys() - self._results.keys())
            for link in self._links.values():
                self._send(link, {"over": True})
            return [self._results[r] for r in sorted(self._results)]
        self._send(self._links.get(0), {"result": result})
        with self._changed:
            self._changed.wait_for(lambda: not self._links)
        # A launcher ends all when the first exits with an error, which rank 0 may do now.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return [result]

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind is SystemExit and self.size > 1 and not self.failed:
            # Ended from outside, perhaps because another rank is no more.
            with self._changed:
                self._changed.wait_for(lambda: self.failed, GOODBYE_SECONDS)
        if kind is None and self.leads:
            with self._changed:
                self._changed.wait_for(lambda: not self._links, GOODBYE_SECONDS)
        for link in list(self._links.values()):
            with contextlib.suppress(OSError):
                link.close()

    # Connections ----------------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Every rank with rank 0, whose address the others learn by `mx.distributed`."""
        door, secret = None, secrets.token_hex(16)
        mine = b""
        if self.leads:
            host = _own_host()
            door = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
            mine = json.dumps([host, door.getsockname()[1], secret]).encode()
        padded = np.zeros((1, _ADDRESS_BYTES), np.uint8)
        padded[0, : len(mine)] = list(mine)
        everyone = np.array(mx.distributed.all_gather(mx.array(padded)))
        host, port, secret = json.loads(bytes(everyone[0]).rstrip(b"\0"))
        if door is None:
            link = socket.create_connection((host, port), CONNECT_SECONDS)
            self._send(link, {"rank": self.rank, "secret": secret})
            self._listen(0, link, link.makefile("rb"))
            return
        door.settimeout(CONNECT_SECONDS)
        with door:
            while len(self._links) < self.size - 1:
                link, _ = door.accept()
                lines = link.makefile("rb")
                hello = _line(lines)
                if hello is None or not hmac.compare_digest(str(hello.get("secret")), secret):
                    link.close()
                    continue
                self._listen(hello["rank"], link, lines)

    def _listen(self, rank: int, link: socket.socket, lines: Any) -> None:
        link.settimeout(None)
        self._links[rank] = link
        threading.Thread(target=self._hear, args=(rank, lines), name=f"rank {rank}", daemon=True).start()

    def _hear(self, rank: int, lines: Any) -> None:
        """What `rank` says until it ends."""
        over = False
        while (said := _line(lines)) is not None:
            if "done" in said:
                self._finished.add(said["done"])
            over = over or "over" in said or "result" in said
            with self._changed:
                if "result" in said:
                    self._results[rank] = said["result"]
                if "over" in said:
                    self._links.pop(rank, None)
                self._changed.notify_all()
        if not over:
            self._tell(self._lost(rank))
        with self._changed:
            self.failed = self.failed or not over
            self._links.pop(rank, None)
            self._changed.notify_all()

    def _lost(self, rank: int) -> str:
        left = [name for i, name in enumerate(self._names) if i % self.size == rank and i not in self._finished]
        what = f"not made: {', '.join(left)}" if left else "all of it had been made"
        if rank == 0 and not self.leads:
            # Only rank 0 hears what others have finished.
            what = f"perhaps not made: {', '.join(left)}"
        return f"rank {rank} of {self.size} has ended before its work was done; {what}"

    def _send(self, link: socket.socket | None, message: dict) -> None:
        if link is None:
            return
        # Who is gone has been told of by who listens.
        with contextlib.suppress(OSError):
            link.sendall(json.dumps(message).encode() + b"\n")


def _line(lines: Any) -> dict | None:
    """The next message, None at the end of a connection."""
    try:
        line = lines.readline()
        return json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None


def _own_host() -> str:
    """The address of this machine by which the launcher's other machines know it."""
    hosts = os.environ.get("MLX_HOSTFILE")
    if hosts:
        with contextlib.suppress(OSError, ValueError, IndexError, TypeError, AttributeError):
            with open(hosts, encoding="utf-8") as f:
                first = json.load(f)[0][0]
            return first.rsplit(":", 1)[0].strip("[]")
    return socket.gethostbyname(socket.gethostname())
