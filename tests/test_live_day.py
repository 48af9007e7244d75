"""Long talks through the live loop: nothing grows, every word keeps its time."""

from __future__ import annotations

import pytest
import simulated_day
from simulated_day import FRAMES_PER_HOUR, MARK, Day, run


def check(day: Day, hours: float) -> None:
    assert day.frames == round(hours * FRAMES_PER_HOUR)
    assert day.words == day.marks == -(-day.frames // MARK)
    assert day.wrong == []


def test_words_of_half_an_hour():
    check(run(simulated_day.load("pass-through"), 0.5, tell=lambda line: None), 0.5)


@pytest.mark.slow
def test_a_day():
    day = run(simulated_day.load("pass-through"), 24.0)
    check(day, 24.0)
    # After the first hour, in which the interpreter has taken what it needs.
    assert day.figures[-1].resident - day.figures[1].resident < 1_000_000


@pytest.mark.slow
def test_half_an_hour_of_a_model():
    day = run(simulated_day.load("least"), 0.5, every=0.05)
    check(day, 0.5)
    assert day.figures[-1].active - day.figures[0].active < 100_000
    assert day.figures[-1].resident - day.figures[1].resident < 4_000_000
