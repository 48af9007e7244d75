"""Positions in the audio a model was fed, and in the recording: the difference is silence that was put in."""

from __future__ import annotations


class Timeline:
    """Frames fed to the model -> seconds of the recording."""

    def __init__(self, frame_rate: float):
        self._frame_rate = frame_rate
        self._inserted: list[tuple[int, int]] = []

    def insert(self, position: int, frames: int) -> None:
        """`frames` that are not of the recording were fed from `position` on; positions only grow."""
        if frames:
            self._inserted.append((position, frames))

    def seconds(self, position: float) -> float:
        """Time of a fed position; what lies in an insertion happens where it was put in."""
        before = sum(min(frames, max(0, position - start)) for start, frames in self._inserted)
        return max(0.0, position - before) / self._frame_rate
