"""Clients of a batch of rows that send when they like, and a driver that lets them join, pause, leave and be replaced at random."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from moshi_mlx.engine.streams import EndTurn, Inbox, Mark, Say

FRAME = 1920


@dataclass
class Client:
    """What one stream asks for, and what it sends: float arrays are fed, other things are messages."""

    options: Any
    sends: list
    items: list = field(default_factory=list)


def drive(kind, clients: list[Client], seed: int, restart: float = 0.005) -> None:
    """Serve `clients` in the rows of `kind` until all are done; each one's `items` are what it got in its last life."""
    rng = np.random.default_rng(seed)
    changed = threading.Condition()
    waiting, rows = list(range(len(clients))), {}
    while waiting or rows:
        for row in set(range(kind.rows)) - set(rows):
            if waiting and rng.random() < 0.5:
                number = waiting.pop(int(rng.integers(len(waiting))))
                clients[number].items.clear()
                rows[row] = [
                    number,
                    Inbox(kind.bounds, changed),
                    list(clients[number].sends),
                    kind.join(row, clients[number].options),
                ]
        for row, state in list(rows.items()):
            number, inbox, sends, joining = state
            if joining is not None:
                # Others go on between the pieces of a joining.
                if rng.random() < 0.7 and next(joining, "over") == "over":
                    state[3] = None
                continue
            if rng.random() < restart:
                kind.leave(row)
                del rows[row]
                waiting.append(number)
                continue
            while sends and rng.random() < 0.6:
                send(inbox, sends.pop(0))
            if not sends:
                inbox.finish()
        given = {
            row: kind.collect(row, inbox)
            for row, (_, inbox, _, joining) in rows.items()
            if joining is None and kind.ready(row, inbox) and rng.random() < 0.8
        }
        for row, outcome in (kind.step(given) if given else {}).items():
            clients[rows[row][0]].items += outcome.items
            if outcome.done:
                kind.leave(row)
                del rows[row]


def send(inbox: Inbox, what) -> None:
    if isinstance(what, np.ndarray):
        inbox.feed(what)
    elif isinstance(what, Say):
        inbox.send(what, len(what.text))
    else:
        assert isinstance(what, (Mark, EndTurn))
        inbox.send(what)


def noise(frames: int, seed: int) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(frames * FRAME)).astype(np.float32)


def in_pieces(pcm: np.ndarray, seed: int) -> list[np.ndarray]:
    """Sound cut anywhere, as a network cuts it."""
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(pcm), len(pcm) // 1500))
    return np.split(pcm, cuts)


def same_sound(found: np.ndarray, expected: np.ndarray, loudest: float) -> None:
    """Equal within 1e-6 of full scale; sound of random weights may be far louder than that."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * max(1.0, loudest))
