"""Takes on a clock: what one side of a conversation hears or says."""

import math
from dataclasses import dataclass, field

from .rates import FRAME_SIZE, SAMPLE_RATE
from .takes import Take


@dataclass
class Placed:
    """A take that begins at sample `at`; of it, samples up to `stop` (on the same clock) are heard."""

    take: Take
    at: int
    stop: int

    @property
    def words(self) -> list[tuple[str, int]]:
        """(word, sample of its onset) of what is heard."""
        return [(word, self.at + onset) for word, onset in self.take.words if self.at + onset < self.stop]


@dataclass
class Scene:
    """`length` samples in which takes are heard."""

    length: int
    placed: list[Placed] = field(default_factory=list)

    def add(self, take: Take, at: int, stop: int | None = None) -> Placed:
        stop = min(self.length, at + take.length if stop is None else stop)
        self.placed.append(Placed(take, at, stop))
        return self.placed[-1]


def samples(seconds: float) -> int:
    return int(seconds * SAMPLE_RATE)


def next_frame(sample: int) -> int:
    """The first frame that begins at `sample` or later."""
    return math.ceil(sample / FRAME_SIZE)
