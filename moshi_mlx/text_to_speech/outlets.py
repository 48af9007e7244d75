"""Where the sound of a speech goes, and the loop that brings it there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from .speech import Speech


@dataclass
class Outlet:
    """Takes the sound of one utterance. With `keep_codes` the audio codes of every frame are kept as well."""

    write: Callable[[np.ndarray], None]
    keep_codes: bool = False
    samples: int = 0
    codes: list[np.ndarray] = field(default_factory=list)
    first_sound: float | None = None

    def take(self, pcm: np.ndarray, codes: np.ndarray | None) -> None:
        if codes is None:
            return
        if self.first_sound is None:
            self.first_sound = time.perf_counter()
        self.samples += len(pcm)
        if self.keep_codes:
            self.codes.append(codes)
        self.write(pcm)


@dataclass
class Told:
    """One of many utterances, the `number`-th: where its sound went, and whether it was told to its end. `row` is where it was spoken."""

    number: int
    row: int
    outlet: Outlet
    whole: bool = True


def run_many(
    speech: Speech,
    numbers: Iterable[int],
    begin: Callable[[int, int], Outlet | None],
    limit: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> Iterator[Told]:
    """Speak utterances in the rows of `speech` (with `own_clocks`), the next one as soon as a row is done with the one before.

    `begin(row, number)` begins one, gives all of its text, and says where its sound goes: nowhere if it cannot be spoken. Each that was is
    yielded before its row is taken over.
    """
    waiting = iter(numbers)
    rows: dict[int, Told] = {}
    while True:
        for row in range(speech.generator.batch):
            while row not in rows and (number := next(waiting, None)) is not None:
                if (outlet := begin(row, number)) is not None:
                    rows[row] = Told(number, row, outlet)
        if not rows:
            return
        frame = speech.step(list(rows))
        if on_step:
            on_step()
        for row, told in list(rows.items()):
            told.outlet.take(frame.pcm[row], frame.codes[row])
            told.whole = speech.generator.done_row(row)
            if told.whole or (limit is not None and told.outlet.samples >= limit):
                yield rows.pop(row)


def run(
    speech: Speech,
    outlets: Sequence[Outlet],
    text: Iterable[None],
    limit: int | None = None,
    on_step: Callable[[], None] | None = None,
) -> bool:
    """Speak while `text` goes on, each of its items meaning that more has been given to `speech`; then to the end.

    `limit` bounds the samples of an utterance. False if it was reached first.
    """

    def go_on() -> bool:
        while speech.ready:
            if limit is not None and max(o.samples for o in outlets) >= limit:
                return False
            frame = speech.step()
            for outlet, pcm, codes in zip(outlets, frame.pcm, frame.codes, strict=True):
                outlet.take(pcm, codes)
            if on_step:
                on_step()
        return True

    for _ in text:
        if not go_on():
            return False
    speech.finish()
    return go_on()
